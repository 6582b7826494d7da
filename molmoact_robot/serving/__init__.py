"""A model on the wire, in the protocols that robots already speak."""
