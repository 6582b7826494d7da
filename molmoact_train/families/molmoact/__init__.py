"""MolmoAct."""
