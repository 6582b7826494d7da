"""Measure the embedded teachers on held-out rendered scenes.

python scripts/render_dataset.py FRAMES --split test --frames 1024 --full-quality --frames-per-scene 4
python scripts/evaluate_embedded.py FRAMES                        # random poses, full quality
python scripts/evaluate_embedded.py --dataset examples/demo_dataset   # frames of scripted episodes, after H.264
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.labels.pointing import DEFAULT_PROMPT
from molmoact_data.teachers.embedded import (
    DEPTH_WEIGHTS,
    POINTER_WEIGHTS,
    EmbeddedDepth,
    EmbeddedPointer,
)
from scripts.embedded.frame_shards import FrameArrays
from scripts.embedded.metrics import depth_scores, pointing_scores
from scripts.embedded.training import concatenate, open_shards, select


def recorded_frames(root: Path) -> FrameArrays:
    """Front frames of a dataset written by `make_demo_dataset.py` (v2.1), as the video decodes."""
    parts = []
    for rows_path in sorted(root.glob("data/chunk-*/episode_*.parquet")):
        rows = pq.read_table(rows_path).to_pydict()
        video = root / "videos" / rows_path.parent.name / "observation.images.front"
        with av.open(str(video / rows_path.with_suffix(".mp4").name)) as container:
            rgb = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        depth = [_png(d["bytes"]) for d in rows["observation.depth.front"]]
        parts.append(
            FrameArrays(
                rgb=np.stack(rgb),
                depth=np.stack(depth),
                grip_pixel=np.array(rows["observation.gripper_pixel"], np.float32),
                grip_visible=np.array(rows["observation.gripper_visible"]),
                is_wrist=np.zeros(len(rgb), bool),
            )
        )
    return concatenate(parts)


def _png(content: bytes) -> NDArray[np.uint16]:
    return np.asarray(Image.open(io.BytesIO(content))).astype(np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, nargs="?", help="folder that render_dataset.py filled")
    parser.add_argument("--dataset", type=Path, help="a recorded v2.1 dataset instead")
    parser.add_argument("--depth-weights", type=Path, default=DEPTH_WEIGHTS)
    parser.add_argument("--pointer-weights", type=Path, default=POINTER_WEIGHTS)
    parser.add_argument("--limit", type=int, default=2048)
    args = parser.parse_args()
    if (args.frames is None) == (args.dataset is None):
        parser.error("name either a folder of frames or --dataset")
    frames = recorded_frames(args.dataset) if args.dataset else None
    frames = frames or concatenate(open_shards(args.frames, "test"))
    frames = select(frames, np.arange(min(args.limit, len(frames.rgb))))
    scores: dict[str, object] = {"frames": len(frames.rgb)}
    if args.pointer_weights.exists():
        front = select(frames, np.flatnonzero(~frames.is_wrist))
        points = EmbeddedPointer(args.pointer_weights, min_confidence=0.0).point(
            front.rgb, DEFAULT_PROMPT
        )
        scores["pointing"] = pointing_scores(points, front.grip_pixel, front.grip_visible, 256)
    if args.depth_weights.exists():
        depth = EmbeddedDepth(args.depth_weights).estimate(frames.rgb)
        for name, chosen in (("front", ~frames.is_wrist), ("wrist", frames.is_wrist)):
            if chosen.any():
                scores[f"depth_{name}"] = depth_scores(depth[chosen], frames.depth[chosen])
    print(json.dumps(scores, indent=2))


if __name__ == "__main__":
    main()
