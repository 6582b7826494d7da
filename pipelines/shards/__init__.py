"""From episodes to one shard: reading, labelling, writing."""
