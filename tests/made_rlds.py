"""A small RLDS dataset made on the spot, so that tests can break it in any way."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_tfrecord import encode_example, encode_record
from numbered import numbered_frames
from PIL import Image

from molmoact_data.sources.rlds.tfrecord import FeatureValue

NAME, CAMERA, INSTRUCTION = "our_lab", "observation/image", "language_instruction"
SIDE = 64


def make_rlds(root: Path, lengths: Sequence[int] = (6, 4, 5), per_shard: int = 2) -> Path:
    """A sound dataset in `root`; returns `root`. Pictures carry their number in the dataset."""
    root.mkdir(parents=True)
    starts = np.cumsum([0, *lengths])
    records = [encode_example(steps(e, int(starts[e]), n)) for e, n in enumerate(lengths)]
    shards = [records[i : i + per_shard] for i in range(0, len(records), per_shard)]
    write_json(root / "features.json", features())
    split = {"name": "train", "shardLengths": [str(len(shard)) for shard in shards]}
    write_json(root / "dataset_info.json", {"name": NAME, "version": "1.0.0", "splits": [split]})
    for number, shard in enumerate(shards):
        content = b"".join(encode_record(record) for record in shard)
        shard_path(root, number, len(shards)).write_bytes(content)
    return root


def shard_path(root: Path, number: int, total: int) -> Path:
    """Where a file of records is."""
    return root / f"{NAME}-train.tfrecord-{number:05d}-of-{total:05d}"


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


def features(**changes: Any) -> dict[str, Any]:
    """`features.json`; `changes` are leaves of a step by name."""
    leaves = {
        "is_first": tensor("bool"),
        "action": tensor("float32", 7),
        "observation": features_dict(
            image={
                "image": {"shape": {"dimensions": [str(SIDE), str(SIDE), "3"]}, "dtype": "uint8"}
            },
            state=tensor("float32", 3),
        ),
        INSTRUCTION: {"text": {}},
    }
    step = features_dict(**leaves | changes)
    return features_dict(steps={"sequence": {"feature": step, "length": "-1"}})


def features_dict(**children: Any) -> dict[str, Any]:
    return {"featuresDict": {"features": children}}


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    dimensions = [str(n) for n in shape]
    return {"tensor": {"shape": {"dimensions": dimensions}, "dtype": dtype, "encoding": "none"}}


def steps(episode: int, first_picture: int, length: int) -> dict[str, FeatureValue]:
    """One episode as an Example's features."""
    rng = np.random.default_rng(episode)
    action = rng.normal(size=(length, 7)).astype(np.float32)
    return {
        "steps/is_first": (np.arange(length) == 0).astype(np.int64),
        "steps/action": action.ravel(),
        "steps/observation/image": [
            png(rgb) for rgb in numbered_frames(range(first_picture, first_picture + length))
        ],
        "steps/observation/state": action[:, :3].ravel(),
        f"steps/{INSTRUCTION}": [f"do task {episode}".encode()] * length,
    }


def png(rgb: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()
