"""Where depth maps come from: recorded, estimated, rendered or ray-cast; and how they are prepared once."""
