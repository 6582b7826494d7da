"""MolmoAct itself: the network, its inputs and training, and what comes out: exports and answers."""
