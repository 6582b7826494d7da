"""The plain moving-average recipe of the reference against ours: equal network, data, order, steps, schedule.

    MUJOCO_GL=egl python benchmarks/vqvae_recipes.py --output docs/vqvae_recipes \
        --rendered simulator:900:train --rendered-held-out simulator:150:test \
        --estimated PATH_TO_LEROBOT_DATASET --depth-encoder embedded

Writes OUTPUT.json and OUTPUT.png and prints the table; `--draw` redraws both from several JSON
files. Held-out numbers only: another split of the simulator
for rendered depth, whole episodes for estimated depth.

The plain recipe: codes drawn from a normal distribution, moving averages with decay 0.99, commitment 0.25,
straight-through gradients, no k-means, no revival. It differs from ours in the quantiser and nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from molmoact_data.processes import World
from vqvae.config import TrainConfig, resolve_config
from vqvae.depth import places
from vqvae.depth.data import DepthSet, collect
from vqvae.evaluate import ALL, evaluate
from vqvae.model import nearest_code
from vqvae.training import folder as run_folder
from vqvae.training.train import Trainer, batch_rows

CHECKPOINTS = (40, 60, 80, 120, 160, 200, 250, 300, 400, 500, 600, 800, 1000)
REPORTED = ("mse", "abs_rel", "delta1", "boundary_mae", "codes_used", "perplexity")
HELD_OUT_MAPS = 96


class PlainMovingAverage(nn.Module):
    """The codebook of the reference's recipe, with the names that `Learner.export` reads."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("embed", torch.randn(1, codebook_size, dim))
        self.register_buffer("embed_avg", torch.randn(1, codebook_size, dim))
        self.register_buffer("cluster_size", torch.zeros(1, codebook_size))

    @property
    def _codebook(self) -> PlainMovingAverage:
        return self

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        vectors = features.permute(0, 2, 3, 1)
        flat = vectors.reshape(-1, vectors.shape[-1])
        codes = nearest_code(flat, self.embed[0])
        quantized = self.embed[0][codes].view_as(vectors)
        if self.training:
            self._update(flat.detach(), codes)
        commitment = 0.25 * F.mse_loss(vectors, quantized)
        straight_through = vectors + (quantized - vectors).detach()
        return straight_through.permute(0, 3, 1, 2), codes, commitment

    def _update(self, flat: Tensor, codes: Tensor) -> None:
        one_hot = F.one_hot(codes, self.embed.shape[1]).to(flat.dtype)
        size, total = self.cluster_size[0], self.embed_avg[0]
        size.mul_(0.99).add_(one_hot.sum(0), alpha=0.01)
        n = size.sum()
        size.copy_((size + 1e-5) / (n + len(size) * 1e-5) * n)
        total.mul_(0.99).add_(one_hot.T @ flat, alpha=0.01)
        self.embed[0].copy_(total / size[:, None])


def make_trainer(recipe: str, config: TrainConfig) -> Trainer:
    trainer = Trainer(config, World(0, 1, torch.device("cpu")))
    if recipe == "plain":
        geometry = config.geometry
        torch.manual_seed(config.seed)
        plain = PlainMovingAverage(geometry.codebook_size, geometry.code_dim)
        trainer.learner.quantizers = nn.ModuleList([plain])
    return trainer


def run_recipe(
    recipe: str,
    config: TrainConfig,
    depth_set: DepthSet,
    train_rows: NDArray[np.int64],
    held_out: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Held-out numbers at every checkpoint."""
    steps = config.max_steps
    assert steps is not None
    trainer, points = make_trainer(recipe, config), []
    spent = 0.0
    for step in range(steps):
        started = time.process_time()
        rows = batch_rows(step, len(train_rows), config.batch_size, config.seed)
        trainer.train_step(depth_set.maps_NSS[train_rows[np.sort(rows)]], steps)
        spent += time.process_time() - started
        if step + 1 in CHECKPOINTS or step + 1 == steps:
            network = trainer.learner.export().eval()
            numbers = evaluate(network, depth_set, held_out, config.recipe, batch_size=16)[ALL]
            trainer.learner.train()
            points.append({"step": step + 1, "cpu_s": spent, **{k: numbers[k] for k in REPORTED}})
            print(recipe, json.dumps(points[-1]), flush=True)
    return points


def load(
    places_of: list[str], held_out: list[str], config: TrainConfig, encoder: str | None
) -> tuple[DepthSet, NDArray[np.int64], NDArray[np.int64]]:
    """Maps, training rows, at most `HELD_OUT_MAPS` held-out rows."""
    estimator, size = run_folder.depth_estimator(encoder), config.geometry.image_size

    def episodes(names: list[str]) -> Any:
        opened = (places.open_place(n, config.depth_kind, estimator, size) for n in names)
        return chain.from_iterable(opened)

    settings: dict[str, Any] = {"size": size, "recipe": config.recipe, "scaling": config.scaling}
    depth_set = collect(chain(episodes(places_of), episodes(held_out)), **settings)
    if held_out:
        unseen = np.array([d.endswith("test") for d, _ in depth_set.keys])[depth_set.episode_N]
        train_rows, rest = np.flatnonzero(~unseen), np.flatnonzero(unseen)
    else:
        train_rows, rest = depth_set.split(0.2)
    count = min(HELD_OUT_MAPS, len(rest))
    return depth_set, train_rows, rest[np.linspace(0, len(rest) - 1, count).astype(int)]


def table(results: dict[str, Any]) -> str:
    lines = []
    for data, recipes in results.items():
        lines += [
            f"**{data}**: {recipes['train_maps']} training maps, {recipes['held_out_maps']} held-out maps",
            "",
            "| step | MSE plain | ours | AbsRel plain | ours | codes used plain | ours "
            "| perplexity plain | ours |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for plain, ours in zip(recipes["plain"], recipes["ours"], strict=True):
            cells = [str(ours["step"])]
            for key, digits in (("mse", 4), ("abs_rel", 3), ("codes_used", 0), ("perplexity", 1)):
                cells += [f"{plain[key]:.{digits}f}", f"{ours[key]:.{digits}f}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(results), 2, figsize=(9, 3.2 * len(results)), squeeze=False)
    for (data, recipes), row in zip(results.items(), axes, strict=True):
        for recipe, style in (("plain", "o--"), ("ours", "o-")):
            steps = [p["step"] for p in recipes[recipe]]
            row[0].plot(steps, [p["mse"] for p in recipes[recipe]], style, label=recipe)
            row[1].plot(steps, [p["codes_used"] for p in recipes[recipe]], style, label=recipe)
        row[0].set(title=f"{data}: held-out MSE (0..1 depth)", xlabel="step", yscale="log")
        row[1].set(title=f"{data}: codes used of 128", xlabel="step", ylim=(0, 132))
        row[1].axhline(100, color="grey", linewidth=0.8)
        row[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(results: dict[str, Any], output: Path) -> None:
    output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    plot(results, output.with_suffix(".png"))
    print(table(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rendered", nargs="*", default=[])
    parser.add_argument("--rendered-held-out", nargs="*", default=[])
    parser.add_argument("--estimated", nargs="*", default=[])
    parser.add_argument("--depth-encoder", default="embedded")
    parser.add_argument(
        "--preset", default="embedded", help="embedded (small) or released (real size)"
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--output", type=Path, required=True, help="without suffix")
    parser.add_argument(
        "--draw", type=Path, nargs="*", help="JSON files to merge; nothing is trained"
    )
    arguments = parser.parse_args()
    if arguments.draw:
        report(
            {k: v for path in arguments.draw for k, v in json.loads(path.read_text()).items()},
            arguments.output,
        )
        return
    changes = {
        "batch_size": arguments.batch_size, "lr": arguments.lr, "max_steps": arguments.steps,
        "precision": "bf16", "device": "cpu",
    }  # fmt: skip
    ours = resolve_config(arguments.preset, {}, changes)
    plain = resolve_config(arguments.preset, {}, {**changes, "warmup_steps": 0})
    results: dict[str, Any] = {}
    for data, names, held_out, encoder in (
        ("rendered", arguments.rendered, arguments.rendered_held_out, None),
        ("estimated", arguments.estimated, [], arguments.depth_encoder),
    ):
        if not names:
            continue
        loaded = load(names, held_out, ours, encoder)
        results[data] = {
            "train_maps": len(loaded[1]),
            "held_out_maps": len(loaded[2]),
            "plain": run_recipe("plain", plain, *loaded),
            "ours": run_recipe("ours", ours, *loaded),
        }
    report(results, arguments.output)


if __name__ == "__main__":
    main()
