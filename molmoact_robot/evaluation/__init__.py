"""Many episodes of a policy in a simulator, and the numbers."""
