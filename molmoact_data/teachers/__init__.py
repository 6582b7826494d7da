"""One file per third-party model or service; nothing here is imported until it is chosen by name."""
