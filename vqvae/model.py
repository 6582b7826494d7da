"""The depth VQ-VAE: a strided convolutional encoder, a nearest-neighbour codebook, a mirrored decoder.

With its defaults this is the network of the released `vae-final.pt`, module for module, so that its
parameters have the same names. What it is not: a training recipe. The codebook is a set of buffers that
is only read here; `vqvae.training.train` learns it.

Letters: N images, S image size, G grid size, L code levels, K codebook size, D code dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqvae.config import Geometry


class ResidualBlock(nn.Module):
    """conv3 - ReLU - conv3 - ReLU - conv1, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def build_encoder(geometry: Geometry) -> nn.Sequential:
    """[N,1,S,S] -> [N,D,G,G]."""
    layers: list[nn.Module] = []
    previous = 1
    for channels in geometry.channels:
        layers += [nn.Conv2d(previous, channels, 4, stride=2, padding=1), nn.ReLU()]
        previous = channels
    layers += [ResidualBlock(previous) for _ in range(geometry.num_res_blocks)]
    return nn.Sequential(*layers, nn.Conv2d(previous, geometry.code_dim, 1))


def build_decoder(geometry: Geometry) -> nn.Sequential:
    """[N,D,G,G] -> [N,1,S,S]."""
    previous = geometry.channels[-1]
    layers: list[nn.Module] = [nn.Conv2d(geometry.code_dim, previous, 1), nn.ReLU()]
    layers += [ResidualBlock(previous) for _ in range(geometry.num_res_blocks)]
    for channels in reversed(geometry.channels):
        layers += [nn.ConvTranspose2d(previous, channels, 4, stride=2, padding=1), nn.ReLU()]
        previous = channels
    return nn.Sequential(*layers, nn.Conv2d(previous, 1, 1))


def nearest_code(vectors_MD: Tensor, codebook_KD: Tensor) -> Tensor:
    """Index [M] of the nearest code in L2; the lowest index where two are equally near.

    In float64: the expanded form |v|^2 - 2vc + |c|^2 cancels in float32, and a code that depends on
    the batch it was computed in is a label that cannot be reproduced.
    """
    v, c = vectors_MD.double(), codebook_KD.double()
    return ((c * c).sum(1) - 2.0 * (v @ c.T)).argmin(dim=1)


class VQVAE(nn.Module):
    """Images in the range of the checkpoint's recipe -> codes -> images in the same range."""

    codebook: Tensor
    cluster_size: Tensor
    embed_sum: Tensor

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry
        self.encoder = build_encoder(geometry)
        self.decoder = build_decoder(geometry)
        levels, size, dim = geometry.num_code_levels, geometry.codebook_size, geometry.code_dim
        self.register_buffer("codebook", torch.zeros(levels, size, dim))
        # The running sums of the codebook's moving average: read by nobody here, kept because the
        # released layout has them and training can go on from them.
        self.register_buffer("cluster_size", torch.zeros(levels, size))
        self.register_buffer("embed_sum", torch.zeros(levels, size, dim))

    def quantize(self, features_NDGG: Tensor) -> Tensor:
        """Encoder output [N,D,G,G] -> codes int64 [N,L,G,G]."""
        n, d, g, _ = features_NDGG.shape
        rest = features_NDGG.permute(0, 2, 3, 1).reshape(-1, d)
        levels = []
        for codebook_KD in self.codebook:
            codes = nearest_code(rest, codebook_KD)
            rest = rest - codebook_KD[codes]
            levels.append(codes.view(n, g, g))
        return torch.stack(levels, dim=1)

    def embed(self, codes_NLGG: Tensor) -> Tensor:
        """Codes [N,L,G,G] -> decoder input [N,D,G,G]: the sum over the levels."""
        vectors = [book[codes_NLGG[:, i]] for i, book in enumerate(self.codebook)]
        return torch.stack(vectors).sum(dim=0).permute(0, 3, 1, 2)

    def encode(self, x_N1SS: Tensor) -> Tensor:
        """Images [N,1,S,S] -> codes int64 [N,L,G,G]."""
        return self.quantize(self.encoder(x_N1SS))

    def decode(self, codes_NLGG: Tensor) -> Tensor:
        """Codes [N,L,G,G] -> images [N,1,S,S], not clipped."""
        return self.decoder(self.embed(codes_NLGG))
