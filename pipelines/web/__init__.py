"""General vision-language sets -> shards of conversations."""
