"""General vision-language sets: what they are, how their files are laid out, how their pictures are fetched."""
