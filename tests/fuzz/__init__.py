"""Thousands of broken inputs, each one line or right: `python -m fuzz --count 1000` (see `make fuzz`)."""
