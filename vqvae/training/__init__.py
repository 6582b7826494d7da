"""Learning a codebook."""
