"""Datasets in: LeRobot v2.0, v2.1 and v3.0, and RLDS; `opening.open_source` tells them apart."""
