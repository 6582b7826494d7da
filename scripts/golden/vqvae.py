"""A small VQ-VAE in the released layout and its answers: `python -m scripts.golden.vqvae FOLDER`.

The network is written down here a second time, plainly and without a line of `vqvae`, so that the answers are
not our own: 4x4 convolutions of stride 2, two residual blocks, nearest code, and the mirror image of it.
It is trained (a minute on one core) on the procedural depth maps in [-1, 1], so that only that range fits it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.depth.scenes import depth_maps

HIDDEN, HALVINGS, CODES, CODE_DIM = 2, 5, 128, 16
STEPS, TRAINED_AT, MAPS_ANSWERED, MAPS_DECODED = 300, 160, 5, 1


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        three = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        one = nn.Conv2d(channels, channels, 1)
        self.net = nn.Sequential(three[0], nn.ReLU(), three[1], nn.ReLU(), one)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Plain(nn.Module):
    """Key names are those of the released file."""

    def __init__(self) -> None:
        super().__init__()
        widths = [HIDDEN * 2**i for i in range(HALVINGS)]
        down: list[nn.Module] = []
        for inside, outside in zip([1, *widths], widths, strict=False):
            down += [nn.Conv2d(inside, outside, 4, 2, 1), nn.ReLU()]
        top = widths[-1]
        self.encoder = nn.Sequential(
            *down, Residual(top), Residual(top), nn.Conv2d(top, CODE_DIM, 1)
        )
        up: list[nn.Module] = [nn.Conv2d(CODE_DIM, top, 1), nn.ReLU(), Residual(top), Residual(top)]
        for inside, outside in zip([top, *widths[::-1]], widths[::-1], strict=False):
            up += [nn.ConvTranspose2d(inside, outside, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(*up, nn.Conv2d(HIDDEN, 1, 1))
        self.codebook = torch.randn(CODES, CODE_DIM) * 0.1
        self.cluster_size, self.total = torch.ones(CODES), torch.zeros(CODES, CODE_DIM)

    def released(self) -> dict[str, Tensor]:
        """Every tensor under its released name, as fp16."""
        quantizer = {
            "_embedding": self.codebook,
            "_ema_cluster_size": self.cluster_size,
            "_ema_w": self.total,
        }
        named = self.state_dict() | {f"_vq_vae.{k}": v for k, v in quantizer.items()}
        return {f"module.{k}": v.half() for k, v in named.items()}

    def distances(self, z_NDGG: Tensor) -> Tensor:
        """Squared distance of each grid cell to each code [N, G, G, K], in float64."""
        vectors = z_NDGG.movedim(1, -1).double()
        return (vectors[..., None, :] - self.codebook.double()).square().sum(-1)

    def decode(self, codes_NGG: Tensor) -> Tensor:
        return self.decoder(self.codebook[codes_NGG].movedim(-1, 1))


def train(model: Plain) -> None:
    """Straight-through codes; the codebook moves to the mean of what it is nearest to."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        maps = depth_maps(seed=1000 + step, num_maps=8, size=TRAINED_AT)
        x = torch.from_numpy(maps[:, None]).float() / 127.5 - 1
        z = model.encoder(x)
        with torch.no_grad():
            codes = model.distances(z).argmin(-1)
            follow_the_data(model, z.movedim(1, -1).reshape(-1, CODE_DIM), codes.flatten())
        quantized = model.codebook[codes].movedim(-1, 1)
        loss = F.mse_loss(model.decoder(z + (quantized - z).detach()), x) + 0.25 * F.mse_loss(
            z, quantized
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(
                f"step {step}: loss {loss.item():.4f}, {len(codes.unique())} codes", file=sys.stderr
            )


def follow_the_data(model: Plain, vectors: Tensor, codes: Tensor) -> None:
    size, total = model.cluster_size, model.total
    size.mul_(0.95).index_add_(0, codes, torch.full((len(codes),), 0.05))
    total.mul_(0.95).index_add_(0, codes, 0.05 * vectors)
    model.codebook.copy_(total / size.clamp(min=1e-5)[:, None])
    unused = (size < 0.05).nonzero()[:, 0]
    chosen = torch.randint(len(vectors), (len(unused),))
    model.codebook[unused] = vectors[chosen]
    size[unused], total[unused] = 1.0, vectors[chosen]


def stretch(model: Plain, factor: float = 10.0) -> None:
    """The same function with codes `factor` times as far apart, so that most margins are clear of rounding."""
    last, first = model.encoder[-1], model.decoder[0]
    last.weight.data *= factor
    last.bias.data *= factor
    first.weight.data /= factor
    model.codebook, model.total = model.codebook * factor, model.total * factor


def answers(model: Plain, depth_u8: np.ndarray) -> dict[str, np.ndarray]:
    """Codes, margins and reconstructions for both ranges, in the layout of the full folder."""
    found: dict[str, np.ndarray] = {"depth": depth_u8}
    unit = torch.from_numpy(depth_u8[:, None]).float() / 255
    for name, x in (("signed", 2 * unit - 1), ("unit", unit)):
        nearest = model.distances(model.encoder(x)).topk(2, largest=False)
        codes, (first, second) = nearest.indices[..., 0], nearest.values.unbind(-1)
        found[f"codes_{name}"] = codes.numpy().astype(np.int16)
        found[f"margin_{name}"] = (second - first).numpy().astype(np.float32)
        found[f"recon_{name}"] = model.decode(codes[:MAPS_DECODED]).numpy().astype(np.float16)
    return found


def main(folder: Path) -> None:
    torch.manual_seed(0)
    model = Plain()
    train(model)
    stretch(model)
    weights = model.released()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": weights}, folder / "vae-final.pt")
    named = {k.removeprefix("module."): v.float() for k, v in weights.items()}
    model.codebook = named["_vq_vae._embedding"]
    model.load_state_dict({k: v for k, v in named.items() if not k.startswith("_vq_vae.")})
    with torch.inference_mode():
        found = answers(model.eval(), depth_maps(seed=7, num_maps=MAPS_ANSWERED, size=320))
    np.savez(folder / "io.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
