"""The depth VQ-VAE: depth maps to 100 codes and back, its training and its measuring."""
