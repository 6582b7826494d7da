"""Pure label functions and the protocols of the teachers."""
