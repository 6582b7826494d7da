"""Worlds in which a policy can be measured; each is imported when it is chosen."""
