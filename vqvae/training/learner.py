"""The network while it learns: our VQ-VAE around the quantisers of vector-quantize-pytorch.

The library supplies what keeps a codebook alive: k-means initialisation on the first batch, moving
averages that are summed over processes, and dead codes that are revived from the batch. A plain
moving-average codebook started at random collapses here (docs/vqvae.md has the measurement).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vector_quantize_pytorch import VectorQuantize

from vqvae.config import Geometry, QuantizerConfig
from vqvae.model import VQVAE


def build_quantizer(
    geometry: Geometry, config: QuantizerConfig, *, distributed: bool
) -> VectorQuantize:
    """One level's quantiser over vectors [M,1,D]."""
    return VectorQuantize(
        dim=geometry.code_dim,
        codebook_size=geometry.codebook_size,
        decay=config.decay,
        commitment_weight=config.commitment_weight,
        kmeans_init=config.kmeans_iterations > 0,
        kmeans_iters=config.kmeans_iterations,
        threshold_ema_dead_code=config.dead_code_threshold,
        sync_codebook=distributed,
        accept_image_fmap=True,
    )


class Learner(nn.Module):
    """Forward gives the losses; `export` gives the network that a checkpoint holds."""

    def __init__(
        self, geometry: Geometry, config: QuantizerConfig, *, distributed: bool = False
    ) -> None:
        super().__init__()
        self.network = VQVAE(geometry)
        self.quantizers = nn.ModuleList(
            build_quantizer(geometry, config, distributed=distributed)
            for _ in range(geometry.num_code_levels)
        )

    def forward(self, x_N1SS: Tensor, *, quantize: bool = True) -> dict[str, Tensor]:
        """`loss` = `reconstruction` (mean squared error in the recipe's range) + `commitment`."""
        features = self.network.encoder(x_N1SS)
        quantized, commitment = features, features.new_zeros(())
        if quantize:
            with torch.autocast(features.device.type, enabled=False):
                quantized, commitment = self._quantize(features.float())
        out = self.network.decoder(quantized)
        reconstruction = F.mse_loss(out.float(), x_N1SS.float())
        return {
            "loss": reconstruction + commitment,
            "reconstruction": reconstruction,
            "commitment": commitment,
        }

    def _quantize(self, features: Tensor) -> tuple[Tensor, Tensor]:
        rest, total, commitment = features, torch.zeros_like(features), features.new_zeros(())
        for quantizer in self.quantizers:
            quantized, _, loss = quantizer(rest)
            rest = rest - quantized.detach()
            total = total + quantized
            commitment = commitment + loss
        return total, commitment

    def codebooks(self) -> Tensor:
        """The learnt codes [L,K,D]."""
        return torch.stack([quantizer.codebook for quantizer in self.quantizers]).detach()

    @torch.no_grad()
    def export(self) -> VQVAE:
        """The network with the learnt codebook copied into its buffers."""
        for level, quantizer in enumerate(self.quantizers):
            # The library has no public name for the averages.
            book = quantizer._codebook  # noqa: SLF001
            self.network.codebook[level] = book.embed[0]
            self.network.cluster_size[level] = book.cluster_size[0]
            self.network.embed_sum[level] = book.embed_avg[0]
        return self.network
