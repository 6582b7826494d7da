"""Tiny models and tiny data."""
