"""Broken checkpoints and adapters, and hostile answers: one line, or what is written."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random

import torch
from torch import nn

from fuzz.outcomes import EQUAL, EXPLAINED, REJECTED, UNEXPLAINED, Kind, attempt
from fuzz.values import STRANGE, change_bytes, change_json
from molmoact_data.processes import World
from molmoact_data.text.generated import ActionDecoder
from molmoact_data.text.prompts import answer
from molmoact_train import lora
from molmoact_train.checkpoint import (
    TrainerState,
    load_config,
    load_trainer_state,
    save_checkpoint,
    verify_checkpoint,
)
from molmoact_train.config import resolve
from molmoact_train.folders.adapter import read_adapter

ENTRY = {"action": {"q01": [-1.0, 0.0, 0.0], "q99": [1.0, 2.0, 1.0], "mask": [True, True, True]}}


@cache
def sound_step() -> Path:
    """A checkpoint of a run."""
    run = Path(tempfile.mkdtemp(prefix="fuzz-step-"))
    net = nn.Linear(2, 2)
    config = resolve("debug", {"checkpoint": "c", "data": ["d"], "output_path": "s"})
    state = TrainerState(step=3, position=12, world_size=1, seed=1, data_seed=2)
    world = World(0, 1, torch.device("cpu"))
    return save_checkpoint(run, net, torch.optim.AdamW(net.parameters()), state, config, {}, world)


@cache
def sound_adapter() -> Path:
    """An adapter as a LoRA run leaves it."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-adapter-"))
    torch.manual_seed(0)
    weights = {
        "layer.lora_A.default.weight": torch.randn(4, 6),
        "layer.lora_B.default.weight": torch.randn(5, 4),
    }
    settings = lora.LoraSettings(rank=4, alpha=8.0, dropout=0.0, base_bf16=False)
    lora.save_adapter(folder, weights, settings, ["layer"], base="b", statistics={}, run={})
    return folder


def training_checkpoint(rng: Random, place: Path) -> tuple[str, str, str]:
    """One broken file of a step folder."""
    shutil.copytree(sound_step(), place)
    path = rng.choice(sorted(p for p in place.rglob("*") if p.is_file()))
    done = change(path, rng)

    def work() -> tuple[str, str]:
        verify_checkpoint(place)
        found = load_config(place), load_trainer_state(place)
        same = found == (load_config(sound_step()), load_trainer_state(sound_step()))
        if same:
            return EQUAL, ""
        return (EXPLAINED, "") if path.name == "files.json" else (UNEXPLAINED, "other values")

    return done, *attempt(work)


def adapter(rng: Random, place: Path) -> tuple[str, str, str]:
    """One broken file of an adapter folder."""
    shutil.copytree(sound_adapter(), place)
    path = place / rng.choice(["adapter_config.json"] * 3 + ["adapter_model.safetensors"])
    done = change(path, rng)

    def work() -> tuple[str, str]:
        found, sound = read_adapter(place), read_adapter(sound_adapter())
        pairs = [(found.matrices.get(n), pair) for n, pair in sound.matrices.items()]
        same = all(a is not None and all(map(torch.equal, a, b)) for a, b in pairs)
        if (found.base, found.revision, found.scale) == (sound.base, sound.revision, sound.scale):
            return (EQUAL if same else EXPLAINED), ""
        written = json.loads((place / "adapter_config.json").read_text())
        root = written["r"] ** 0.5 if written.get("use_rslora") else written["r"]
        right = found.scale == written["lora_alpha"] / root
        return (EXPLAINED, "") if right else (UNEXPLAINED, f"scale {found.scale}")

    return done, *attempt(work)


def generated(rng: Random, place: Path) -> tuple[str, str, str]:
    """An answer with a piece of it cut, doubled, moved or replaced by something hostile."""
    text = answer(
        "reasoning", depth_codes=[1] * 100, trace=[[[1, 2], [3, 4]]], action_bins=[[1, 2, 3]] * 2, num_images=1
    )  # fmt: skip
    pieces = [
        "<DEPTH_START>", "<DEPTH_END>", "<DEPTH_", "<DEPTH_" + "9" * 5000 + ">", "<DEPTH_999>", "[" * 500, "]" * 500,
        "[[1, 2]", "9" * 5000, "1e999", "-1", "\ud800", "\0", "\u2028", "\u0663", "[\u00e9, \u00e9, \u00e9]", ",", "'",
        *map(str, STRANGE),
    ]  # fmt: skip
    for _ in range(rng.choice([1, 1, 2, 5])):
        start = rng.randrange(len(text) + 1)
        end = min(len(text), start + rng.choice([0, 0, 1, 10, 400]))
        text = text[:start] + rng.choice([*pieces, text[start:end] * 2]) + text[end:]

    def work() -> tuple[str, str]:
        decoded = ActionDecoder.from_norm_stats({"robot": ENTRY}, None).decode(text)
        json.dumps(decoded, allow_nan=False)
        if decoded["problems"]:
            return REJECTED, ""
        low, high = [-1.0, 0.0, -1.0], [1.0, 2.0, 1.0]  # the last is never un-normalised
        rows = decoded["actions"]
        inside = all(
            a - 1e-6 <= x <= b + 1e-6 for r in rows for x, a, b in zip(r, low, high, strict=True)
        )
        return (EQUAL, "") if inside else (UNEXPLAINED, "an action out of range")

    return repr(text[:80]), *attempt(work)


def change(path: Path, rng: Random) -> str:
    """One change of a file, as what it is; says where."""
    if rng.random() < 0.1:
        return "nothing"
    if path.suffix == ".json" and rng.random() > 0.15:
        changed, where = change_json(json.loads(path.read_text()), rng)
        path.write_text(json.dumps(changed))
        return f"{path.name}: {'.'.join(map(str, where))}"
    change_bytes(path, rng)
    return f"{path.name}: bytes"


KINDS: dict[str, Kind] = {
    "checkpoint": training_checkpoint,
    "adapter": adapter,
    "generated text": generated,
}
