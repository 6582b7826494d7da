"""Where a model meets a robot."""
