"""Network families, one folder each."""
