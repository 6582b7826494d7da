"""Drawing and encoding."""
