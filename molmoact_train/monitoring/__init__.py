"""What a run says while it goes: numbers, plots, its log, its page."""
