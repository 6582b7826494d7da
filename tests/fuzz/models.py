"""Broken model folders: the answer of the sound folder, one that its settings explain, or one line."""

from __future__ import annotations

import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from made_molmo import write_molmo

from fuzz.outcomes import EQUAL, EXPLAINED, REJECTED, UNEXPLAINED, Kind, attempt
from fuzz.values import change_bytes, change_field, change_json
from molmoact_data.policies import Observation, PredictionFailed, load_policy
from molmoact_data.teachers.molmo import MolmoPointer
from molmoact_train.families.molmoact.tiny import TinySize, write_tiny_checkpoint as write_molmoact
from molmoact_train.families.molmoact2.statistics import FORMAT, NormStats
from molmoact_train.families.molmoact2.tiny import write_tiny_checkpoint as write_molmoact2

ENTRY = {
    name: {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mean": [0.0] * 7, "std": [1.0] * 7, "min": [-1.0] * 7,
           "max": [1.0] * 7, "mask": [True] * 7, "names": [f"joint_{i}" for i in range(7)]}
    for name in ("action", "state")
}  # fmt: skip
SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
DECIDES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "norm_stats.json",
    "tokenizer",
)
"""Files that say how a model is asked and what its answer means: an answer may follow them."""


def picture() -> np.ndarray:
    """A noisy picture, uint8 [48, 64, 3]."""
    return np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def molmoact(folder: Path) -> Path:
    entry = {"robot": {"action": ENTRY["action"], "horizon": 1}}
    return write_molmoact(folder, SIZE, norm_stats=entry)


def molmoact2(folder: Path) -> Path:
    tag = {
        "setup_type": "tabletop", "control_mode": "delta", "action_horizon": 4, "camera_keys": ["primary"],
        "action_stats": ENTRY["action"], "state_stats": ENTRY["state"],
    }  # fmt: skip
    stats = NormStats.from_json({"format": FORMAT, "metadata_by_tag": {"robot": tag}}).to_json()
    return write_molmoact2(folder, statistics=stats, horizon=4)


def acts(folder: Path) -> Any:
    """The actions of one answer, and what the model says it is."""
    policy = load_policy(folder, device="cpu")
    policy.reset(0)
    state = None if policy.info.state_dim is None else np.zeros(policy.info.state_dim, np.float32)
    seen = Observation(images={"primary": picture()}, instruction="pick it up", state=state)
    found = policy.act(seen)
    assert found.actions_HD.shape == (policy.info.horizon, policy.info.action_dim)
    return found.actions_HD.tobytes(), found.text


def points(folder: Path) -> Any:
    """Where it sees the gripper."""
    found = MolmoPointer(checkpoint=str(folder), device="cpu").point(picture()[None], "gripper")
    return found.xy_NA2.tobytes(), found.confidence_NA.tobytes()


def broken(write: Callable[[Path], Path], ask: Callable[[Path], Any]) -> Kind:
    """Copies of one sound folder, each with one broken file."""

    @cache
    def sound() -> tuple[Path, Any]:
        folder = write(Path(tempfile.mkdtemp(prefix="fuzz-model-")) / "model")
        return folder, ask(folder)

    def one(rng: Random, place: Path) -> tuple[str, str, str]:
        folder, before = sound()
        shutil.copytree(folder, place)
        path, where = change_file(place, rng)

        def work() -> tuple[str, str]:
            try:
                found = ask(place)
            except PredictionFailed as failed:
                return REJECTED, str(failed)
            if found == before:
                return EQUAL, ""
            explained = path.name.startswith(DECIDES) or path.name.endswith(".safetensors")
            return (EXPLAINED if explained else UNEXPLAINED), "another answer"

        return f"{path.relative_to(place)}: {where}", *attempt(work)

    return one


def change_file(folder: Path, rng: Random) -> tuple[Path, str]:
    """One change of one file, small ones more often; what was changed."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".py")
    settings = [p for p in files if p.name in ("config.json", "preprocessor_config.json")]
    path = rng.choice([*files, *settings, *settings])
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        return path, change_header(path, rng)
    if path.suffix == ".json" and rng.random() < 0.85:
        value = json.loads(path.read_text())
        changed, where = (change_field if isinstance(value, dict) else change_json)(value, rng)
        path.write_text(json.dumps(changed))
        return path, ".".join(map(str, where))[:120] + f" = {_at(changed, where)!r}"[:60]
    change_bytes(path, rng)
    return path, "bytes"


def _at(value: Any, where: tuple[str | int, ...]) -> Any:
    for part in where:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return "gone"
    return value


def change_header(path: Path, rng: Random) -> str:
    """One change of what a safetensors file says about its tensors."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    changed, where = change_field(json.loads(content[8 : 8 + length]), rng)
    header = json.dumps(changed).encode()
    said = rng.choice([len(header), len(header), len(header), 2**40, 2**63, 0])
    path.write_bytes(struct.pack("<Q", said) + header + content[8 + length :])
    return "header: " + ".".join(map(str, where))


KINDS: dict[str, Kind] = {
    "model molmoact": broken(molmoact, acts),
    "model molmoact2": broken(molmoact2, acts),
    "model molmo": broken(write_molmo, points),
}
