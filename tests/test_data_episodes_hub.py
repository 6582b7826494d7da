"""Datasets of the Hub through huggingface_hub itself, against a server that speaks its endpoints."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_datasets import FRONT, everything, make_v3_dataset
from made_hub import COMMIT, Hub
from test_data_episodes_rlds import COMMON, SHAPES, episode, serialize, write

from molmoact_data.sources.opening import open_source

ROOT = Path(__file__).resolve().parent.parent
WRIST = "observation/wrist_image_left"
READER = """
import hashlib, sys
from made_datasets import everything
from molmoact_data.sources.opening import open_source
source = open_source("lab/made")
print(source.info.name, source.info.revision)
print(hashlib.sha256(repr(everything(source, [sys.argv[1]])).encode()).hexdigest())
"""


def make_rlds(root: Path) -> Path:
    records = [serialize(episode(COMMON | SHAPES["droid"], seed)) for seed in range(3)]
    return write(root, "droid", [records[:2], records[2:]])


def read(hub: Hub, home: Path, camera: str, *, offline: bool) -> list[str]:
    """In a process of its own: huggingface_hub looks at its environment once."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    done = subprocess.run(
        [sys.executable, "-c", READER, camera],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("make", "camera", "name"),
    [(make_v3_dataset, FRONT, "lab/made"), (make_rlds, WRIST, "droid")],
    ids=["lerobot", "rlds"],
)
def test_a_hub_dataset_is_its_local_copy_and_stays_usable_offline(
    make: Any, camera: str, name: str, hub: Hub, tmp_path: Path
) -> None:
    local = make(tmp_path / "made")
    hub.files = {
        p.relative_to(local).as_posix(): p.read_bytes() for p in local.rglob("*") if p.is_file()
    }
    expected = hashlib.sha256(repr(everything(open_source(local), [camera])).encode()).hexdigest()

    online = read(hub, tmp_path / "home", camera, offline=False)
    bodies = [path for method, path in hub.log if method == "GET" and "/resolve/" in path]
    hub.log.clear()
    offline = read(hub, tmp_path / "home", camera, offline=True)

    assert online == offline == [name, COMMIT, expected]
    assert len(bodies) == len(set(bodies)) == len(hub.files)  # each file once
    assert hub.log == []
