"""How good a checkpoint is on an output: held-out losses, answers to single frames."""
