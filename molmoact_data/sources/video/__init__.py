"""Decoding: a clip is decoded once, in order."""
