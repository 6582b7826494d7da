"""One module per family of sets: files as their authors publish them -> examples."""
