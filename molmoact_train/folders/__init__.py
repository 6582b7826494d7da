"""Model folders in the released layout."""
