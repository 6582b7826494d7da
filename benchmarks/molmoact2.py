# ruff: noqa: SLF001  the same noise and the same inputs need LeRobot's inner methods
"""MolmoAct2 beside LeRobot's own classes, in one process, on the same weights and the same batch.

    python benchmarks/molmoact2.py                    # a tiny model and a 40 M cut of the real proportions, CPU
    python benchmarks/molmoact2.py --size tiny --steps 5

What is compared, each as a ratio with its spread over rounds that alternate between the two:
- a training step (forward and backward of the joint loss) at equal mathematics: left-padded rows, physical positions,
  the tail masked, image tokens bidirectional, as LeRobot 0.6.1 has them; F flow draws with the same noise. Losses and
  gradients must agree, else the run fails;
- the same samples as our trainer runs them: right padding, or packed into rows;
- one continuous answer of ten Euler steps from the same noise; the actions must agree;
- passes of the decoder for a depth answer with all cells changed and with 30 % of them.

Needs LeRobot with its MolmoAct2 policy (Python 3.12). The weights are random, made on the spot.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from molmoact2_samples import DIMS, REAL_DIMS, make_samples
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from molmoact_train.families.molmoact2 import think
from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.images import CutImages
from molmoact_train.families.molmoact2.network import MolmoAct2, MolmoAct2Config
from molmoact_train.families.molmoact2.network.flow import ActionChunks, euler
from molmoact_train.families.molmoact2.network.folder import load, released_tensors
from molmoact_train.families.molmoact2.processor import Prompt
from molmoact_train.families.molmoact2.samples import MolmoAct2Sample, collate
from molmoact_train.families.molmoact2.tiny import random_model, write_tiny_checkpoint

SIZES: dict[str, dict[str, int]] = {
    "tiny": {},
    # About 1/130 of 5.36 B: widths / 5, a sixth of the layers, head widths and kinds of parts kept.
    "40m": {"width": 512, "layers": 6, "heads": 4, "kv": 1, "head_dim": 128, "inner": 1946, "expert": 192,
            "expert_heads": 2, "vit": 288, "vit_layers": 4, "vit_heads": 4, "vit_dim": 72},
}  # fmt: skip
HORIZON = 12


def write_model(folder: Path, size: str) -> Path:
    """A checkpoint folder of a size, without depth (LeRobot's policy knows none)."""
    write_tiny_checkpoint(folder, depth=False, horizon=HORIZON)
    s = SIZES[size]
    fields = json.loads((folder / "config.json").read_text())
    if s:
        fields["text_config"] |= {
            "hidden_size": s["width"],
            "num_hidden_layers": s["layers"],
            "num_attention_heads": s["heads"],
            "num_key_value_heads": s["kv"],
            "head_dim": s["head_dim"],
            "intermediate_size": s["inner"],
        }
        vision = {"hidden_size": s["vit"], "num_attention_heads": s["vit_heads"], "num_key_value_heads": s["vit_heads"],
                  "head_dim": s["vit_dim"]}  # fmt: skip
        fields["vit_config"] |= vision | {
            "intermediate_size": 4 * s["vit"],
            "num_hidden_layers": s["vit_layers"],
        }
        fields["adapter_config"] |= vision | {
            "intermediate_size": s["inner"],
            "text_hidden_size": s["width"],
            "vit_layers": [-1, -3],
        }
        fields["action_expert_config"] |= {
            "hidden_size": s["expert"], "num_heads": s["expert_heads"], "num_layers": s["layers"],
            "timestep_embed_dim": 256, "ffn_multiple_of": 64,
        }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    model = random_model(MolmoAct2Config.from_json(fields), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                not parameter.any()
            ):  # a fresh expert answers 0 to everything, which would compare nothing
                parameter.normal_(std=0.02)
    tensors = {name: tensor.contiguous() for name, tensor in released_tensors(model)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def peer_batch(samples: list[MolmoAct2Sample], config: MolmoAct2Config) -> dict[str, torch.Tensor]:
    """The samples as LeRobot's pipeline hands them to its policy: left-padded."""
    longest = max(s.num_tokens for s in samples)
    ids = torch.full((len(samples), longest), config.pad_id)
    mask = torch.zeros(len(samples), longest, dtype=torch.long)
    labels = torch.full((len(samples), longest), -100)
    for row, sample in enumerate(samples):
        tokens = torch.from_numpy(sample.input_tokens)
        ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
        answer = int((sample.loss_weights > 0).sum())
        labels[row, -answer:] = tokens[-answer:]
    patches = samples[0].crops_UPC.shape[1]
    pixels = np.concatenate([s.crops_UPC for s in samples]).astype(np.float32) / 255 * 2 - 1
    pooling = np.concatenate([s.windows_V4 for s in samples])
    side = -(-round(patches**0.5) // 2)
    images = 2 * len(samples)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.isin(ids, torch.tensor(config.image_token_ids)),
        "labels": labels,
        "pixel_values": torch.from_numpy(pixels),
        "image_token_pooling": torch.from_numpy(np.where(pooling >= 0, pooling % patches, -1)),
        "image_grids": torch.tensor([[side, side, 0, 0]] * images),
        "image_num_crops": torch.ones(images, dtype=torch.long),
        "action": torch.from_numpy(np.stack([s.chunk.actions_TA for s in samples])),
        "action_dim_is_pad": ~torch.from_numpy(np.stack([s.chunk.dims_A for s in samples])),
        "action_horizon_is_pad": torch.zeros(len(samples), HORIZON, dtype=torch.bool),
    }


def load_peer(folder: Path, draws: int) -> Any:
    """LeRobot's policy over the same files, fp32, without what is random."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.molmoact2.configuration_molmoact2 import MolmoAct2Config as PeerConfig
    from lerobot.policies.molmoact2.modeling_molmoact2 import MolmoAct2Policy as Peer

    visual = {
        f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, 70, 70)) for n in "ab"
    }
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (8,))}
    config = PeerConfig(
        checkpoint_path=str(folder), model_dtype="float32", device="cpu", action_mode="both", chunk_size=HORIZON,
        n_action_steps=HORIZON, num_flow_timesteps=draws, freeze_embedding=False,
        enable_inference_cuda_graph=False, inference_action_mode="continuous",
        input_features={**visual, **state},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (REAL_DIMS,))},
    )  # fmt: skip
    return Peer(config).train()


def equal_mathematics(
    samples: list[MolmoAct2Sample], config: MolmoAct2Config
) -> tuple[dict[str, torch.Tensor], ActionChunks]:
    """Our network's arguments for LeRobot's batch."""
    given = peer_batch(samples, config)
    targets = given["labels"].roll(-1, dims=1)
    targets[:, -1] = -100
    has_loss = targets != -100
    count = has_loss.sum(dim=1, keepdim=True)
    ours = collate(samples, seq_len=None, text_first=True)
    return {
        "input_ids": given["input_ids"],
        "pixels": ours.inputs["pixels"],
        "windows": ours.inputs["windows"],
        "real": given["attention_mask"].bool(),
        "position_ids": torch.arange(given["input_ids"].shape[1]).expand_as(given["input_ids"]),
        "targets": targets.clamp(min=0),
        "loss_weights": has_loss * 2 / count.sqrt(),
    }, ours.chunks


def compare_training(folder: Path, lengths: list[int], draws: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step of each, as ratios; raises where losses or gradients differ."""
    config = MolmoAct2Config.from_folder(folder)
    samples = make_samples(config, lengths, draws)
    model, peer = load(folder).train(), load_peer(folder, draws)
    given = peer_batch(samples, config)
    noise = torch.from_numpy(np.stack([s.chunk.noise_FTA for s in samples]))
    times = torch.from_numpy(np.stack([s.chunk.times_F for s in samples]))
    prepare = peer._prepare_flow_matching_tensors
    peer._prepare_flow_matching_tensors = lambda **kw: prepare(
        **kw | {"noise": noise, "timesteps": times}
    )
    inputs, chunks = equal_mathematics(samples, config)
    padded = collate(samples, seq_len=None, text_first=True)
    packed = collate(samples, seq_len=max(2100, max(lengths)), text_first=True)

    def theirs() -> torch.Tensor:
        loss, _ = peer.forward(given)
        loss.backward()
        return loss.detach()

    def step(arguments: dict[str, Any], own: ActionChunks) -> torch.Tensor:
        loss = model(**arguments, chunks=own).loss
        loss.backward()
        return loss.detach()

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "lerobot": theirs,
        "ours, equal mathematics": lambda: step(inputs, chunks),
        "ours, right padding": lambda: step(dict(padded.inputs), padded.chunks),
        "ours, packed": lambda: step(dict(packed.inputs), packed.chunks),
    }
    difference = gradient_difference(model, peer, ways)
    bytes_held = {}
    for name, way in ways.items():
        bytes_held[name] = peak_bytes(way)
        model.zero_grad(set_to_none=True)
        peer.zero_grad(set_to_none=True)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            clock = time.process_time()
            way()
            seconds[name].append(time.process_time() - clock)
            model.zero_grad(set_to_none=True)
            peer.zero_grad(set_to_none=True)
    return {
        "draws": draws, "lengths": lengths, "largest gradient difference (relative)": difference,
        "samples/s over LeRobot's": ratios(seconds),
        "peak memory over LeRobot's": {n: round(b / bytes_held["lerobot"], 2) for n, b in bytes_held.items()},
    }  # fmt: skip


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, gradients included; parameters were there before."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._see, made)
        return made

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known[storage] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


def peak_bytes(way: Callable[[], torch.Tensor]) -> int:
    """The most bytes that a step holds at once, parameters left out."""
    with LiveBytes() as counted:
        way()
    return counted.peak


def gradient_difference(
    model: MolmoAct2, peer: Any, ways: dict[str, Callable[[], torch.Tensor]]
) -> float:
    """Largest difference over the largest gradient of the same parameter; the losses must agree first."""
    theirs, ours = ways["lerobot"](), ways["ours, equal mathematics"]()
    if not torch.allclose(theirs, ours, rtol=1e-5):
        raise SystemExit(f"void: LeRobot's loss is {theirs:.6f}, ours {ours:.6f}")
    gradients = {
        n.removeprefix("model."): p.grad for n, p in peer.named_parameters() if p.grad is not None
    }
    worst = 0.0
    for name, parameter in model.named_parameters():
        expected = gradients.get(name)
        if parameter.grad is None or expected is None:
            continue
        scale = float(expected.abs().max())
        if scale > 1e-6:
            worst = max(worst, float((parameter.grad - expected).abs().max()) / scale)
    if worst > 1e-3:
        raise SystemExit(f"void: gradients differ by {worst:.2e}")
    model.zero_grad(set_to_none=True)
    peer.zero_grad(set_to_none=True)
    return worst


def ratios(seconds: dict[str, list[float]]) -> dict[str, str]:
    """LeRobot's time over each way's, median and range over rounds."""
    base = seconds["lerobot"]
    found = {}
    for name, own in seconds.items():
        each = [b / o for b, o in zip(base, own, strict=True)]
        found[name] = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
    return found


def compare_answers(folder: Path, rounds: int) -> dict[str, Any]:
    """One continuous answer of ten Euler steps."""
    config = MolmoAct2Config.from_folder(folder)
    sample = make_samples(config, [150], 1)[0]
    prompt = sample.input_tokens[: int(np.argmax(sample.loss_weights > 0)) + 1]
    model, peer = load(folder), load_peer(folder, 1).eval()
    given = peer_batch([sample], config)
    keys = (
        "token_type_ids",
        "pixel_values",
        "image_token_pooling",
        "image_grids",
        "image_num_crops",
    )
    inputs = {k: given[k] for k in keys} | {"input_ids": torch.from_numpy(prompt)[None]}
    inputs["token_type_ids"] = torch.isin(inputs["input_ids"], torch.tensor(config.image_token_ids))
    dims = torch.from_numpy(sample.chunk.dims_A)[None]
    noise = torch.randn(1, HORIZON, DIMS, generator=torch.Generator().manual_seed(0))

    def theirs() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return peer._backbone().generate_actions_from_inputs(
                **inputs,
                action_dim_is_pad=~dims,
                action_horizon=HORIZON,
                num_steps=10,
                generator=generator,
            )

    def ours() -> torch.Tensor:
        pictures = CutImages(sample.crops_UPC, sample.windows_V4, ())
        decoding = Decoding(model, [Prompt(prompt, pictures, "")])
        decoding.feed([[]])
        with torch.inference_mode():
            return euler(model.expert, decoding.expert_context(), noise, 10, dims)

    difference = float((theirs() - ours()).abs().max() / ours().abs().max().clamp(min=1e-6))
    if difference > 1e-3:
        raise SystemExit(f"void: the actions differ by {difference:.2e}")
    seconds: dict[str, list[float]] = {"lerobot": [], "ours": []}
    for _ in range(rounds):
        for name, way in (("lerobot", theirs), ("ours", ours)):
            clock = time.process_time()
            way()
            seconds[name].append(time.process_time() - clock)
    return {"difference (relative)": difference, "answers/s over LeRobot's": ratios(seconds)}


def depth_passes(folder: Path) -> dict[str, int]:
    """Decoder passes of a depth answer, by share of changed cells."""
    write_tiny_checkpoint(folder)
    model = load(folder)
    depth = model.config.depth_tokens
    assert depth is not None
    sample = make_samples(model.config, [150], 1)[0]
    prompt = Prompt(sample.input_tokens, CutImages(sample.crops_UPC, sample.windows_V4, ()), "")
    found = {}
    for share in (1.0, 0.3):
        decoding = Decoding(model, [prompt])
        updates = (np.arange(100) < 100 * share)[None]
        think.write_depth(decoding, depth, updates, np.zeros((1, 100), dtype=np.int64))
        found[f"{share:.0%} changed"] = decoding.forward_passes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--steps", type=int, default=5, help="Rounds of each comparison.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"torch": torch.__version__, "threads": options.threads}
    with tempfile.TemporaryDirectory() as scratch:
        for size in SIZES if options.size == "all" else [options.size]:
            folder = write_model(Path(scratch) / size, size)
            scalars = sum(p.numel() for p in load(folder).parameters())
            unequal, short = [145, 117, 190, 132], [80, 75, 220, 70, 85, 78, 90, 72]
            report[size] = {
                "million parameters": round(scalars / 1e6, 2),
                "step": [compare_training(folder, unequal, f, options.steps) for f in (4, 8)],
                "short examples": compare_training(folder, short, 4, options.steps),
                "answer": compare_answers(folder, options.steps),
            }
        report["depth answer, decoder passes"] = depth_passes(Path(scratch) / "think")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
