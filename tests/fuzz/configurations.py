"""Broken YAML configurations: a run that they describe, or one line. Nothing is run; all of it is read."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import yaml
from made_datasets import make_dataset
from made_outputs import write_output

from fuzz.commands import call
from fuzz.outcomes import EQUAL, EXPLAINED, REFUSED, TRACEBACK, UNEXPLAINED, Kind, attempt
from fuzz.values import STRANGE, change_bytes, change_json
from molmoact_data.teachers.projection import ProjectedPoints
from molmoact_robot.serving.config import read_fields
from molmoact_train.families.molmoact.tiny import write_tiny_checkpoint

CAMERA = {
    "width": 640, "height": 480, "intrinsics": [[600, 0, 320], [0, 600, 240], [0, 0, 1]], "distortion": [],
    "world_to_camera": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "first_pixel_centre": 0,
}  # fmt: skip
Reader = Callable[[Path], tuple[int, str]]


@cache
def places() -> Path:
    """A dataset, an output and a checkpoint to speak of."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-yaml-"))
    make_dataset(root / "cups", (4, 3))
    write_output(root / "out")
    write_tiny_checkpoint(root / "model")
    return root


def of_preprocess() -> dict[str, Any]:
    return {
        "dataset_path": str(places() / "cups"), "output-path": "out", "depth": "none", "pointer": "column",
        "pointer_column": "gripper_xy", "pointer_units": "pixels", "frames_per_shard": 5, "gripper": {6: "invert"},
        "cameras": {"primary": "observation.images.front"}, "action_bins": 256, "filter_traces": True,
        "line_length": 5, "preset": None, "min_coverage": 0.1, "episodes": "0-1",
    }  # fmt: skip


def of_training() -> dict[str, Any]:
    return {
        "stage": "debug", "checkpoint": str(places() / "model"), "data": [str(places() / "out")], "output-path": "run",
        "duration": 9, "lr_llm": 1e-4, "seq_len": 900, "kind_depth": 0.0, "lora": False, "keep": 2,
        "global_batch_size": 2, "device_batch_size": 1, "eval_fraction": 0.0, "ft_embedding": "lm_head",
    }  # fmt: skip


def of_vqvae() -> dict[str, Any]:
    return {
        "data": [str(places() / "out")], "max_steps": 30, "batch_size": 4, "lr": 1e-4, "depth_kind": "metric",
        "quantizer": {"decay": 0.9}, "geometry": {"codebook_size": 64},
    }  # fmt: skip


def of_robot() -> dict[str, Any]:
    return {"images": ["front", "wrist"], "state": ["joints"], "prompt": "task", "layout": "HWC"}


def of_calibration() -> dict[str, Any]:
    return {
        "camera": CAMERA,
        "arms": [{"column": "observation.state", "position": [0, 1, 2], "tool_offset": [0, 0, 0]}],
    }  # fmt: skip


def dry_run(*words: str) -> Reader:
    """The command with the file, told to do nothing."""
    return lambda path: call(*words, "--config", path, "--dry-run", "--json")


def typed(read: Callable[[Path], object]) -> Reader:
    """A function that raises `UserError`, as a command."""

    def run(path: Path) -> tuple[int, str]:
        outcome, why = attempt(lambda: (EQUAL, repr(read(path))))
        return {EQUAL: 0, REFUSED: 2}.get(outcome, 1), f"error: {why}"

    return run


FILES: dict[str, tuple[Callable[[], dict[str, Any]], Reader]] = {
    "preprocess": (of_preprocess, dry_run("preprocess")),
    "train": (of_training, dry_run("train")),
    "vqvae": (of_vqvae, dry_run("vqvae", "train", "--output-path", "codebook")),
    "robot": (of_robot, typed(read_fields)),
    "calibration": (of_calibration, typed(lambda path: ProjectedPoints(str(path)))),
}


def configuration(rng: Random, place: Path) -> tuple[str, str, str]:
    """One broken file, read by the command it is for."""
    place.mkdir(parents=True)
    name = rng.choice(list(FILES))
    make, read = FILES[name]
    path = place / "c.yaml"
    fields = make()
    done = write_broken(path, fields, rng)
    offline = mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", new=True)
    with contextlib.chdir(place), offline:  # any word may be a Hub id
        code, said = read(path)
    if code == 2:
        one_line = said.count("error:") == 1
        return f"{name}: {done}", (REFUSED if one_line else UNEXPLAINED), said[-500:]
    if code:
        return f"{name}: {done}", TRACEBACK, said[-3000:]
    return f"{name}: {done}", EXPLAINED, ""


def write_broken(path: Path, fields: dict[str, Any], rng: Random) -> str:
    """A changed value, changed bytes, or what YAML can do that nobody wants; says which."""
    text = yaml.safe_dump(fields)
    how = rng.random()
    if how < 0.55:
        plain = json.loads(json.dumps(fields))
        changed, where = change_json(plain, rng)
        path.write_text(yaml.safe_dump(changed))
        return f"{'.'.join(map(str, where))} in {json.dumps(changed)[:300]}"
    if how < 0.7:
        path.write_text(text)
        change_bytes(path, rng)
        return "bytes"
    hostile, what = _hostile(rng, rng.choice(list(fields)))
    path.write_text(
        hostile + text if rng.random() < 0.7 else text + hostile, errors="surrogatepass"
    )
    return what


def _hostile(rng: Random, key: str) -> tuple[str, str]:
    levels = rng.choice([3, 10, 40, 200])
    bomb = "bomb0: &b0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"bomb{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, min(levels, 40))
    )
    merged = "m0: &m0 {x: 1}\n" + "".join(
        f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n"
        for i in range(1, min(levels, 40))
    )
    return rng.choice(
        [
            (bomb, f"{levels} levels of aliases"),
            (bomb + f"{key}: *b{min(levels, 40) - 1}\n", f"{key} is a bomb of {levels} levels"),
            (merged, f"{levels} levels of merged mappings"),
            (f"{key}: &a [*a]\n", f"{key} holds itself"),
            (f"{key}: &a {{<<: *a}}\n", f"{key} is merged with itself"),
            (f"{key}: {'[' * levels}{']' * levels}\n", f"{key} {levels} deep"),
            (f"{key}: {'[' * 100_000}\n", f"{key} is 100,000 deep"),
            (f"{key}: !!python/object/apply:os.getcwd []\n", f"{key} runs Python"),
            (f"{key}: {rng.choice(STRANGE)!r}\n", f"{key} twice"),
            (f"{key.replace('_', '-')}: 1\n", f"{key} in both spellings"),
            (f"{key}: {'9' * 5000}\n", f"{key} of 5,000 digits"),
            (f"{key}: {':59' * 2000}\n", f"{key} in base 60"),
            ("? [1, 2]\n: 3\n", "a list as a key"),
            ("---\n", "several documents"),
            (f'{key}: "\\ud800"\n', f"{key} half a character"),
            (f"{key}: 2001-01-01\n", f"{key} is a date"),
            ("x" * 2_000_000, "two megabytes"),
        ]
    )


KINDS: dict[str, Kind] = {"YAML, commands": configuration}
