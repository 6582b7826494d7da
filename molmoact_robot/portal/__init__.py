"""A page to look at a model and to steer it with the finger."""
