"""Every string: tokens, prompts, and what a model wrote."""
