"""`--depth-buffer`: codes that follow only where the picture changed, made in the pass that makes the codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset
from made_outputs import DotSource
from PIL import Image

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.outputs.columns import fixed_array
from molmoact_data.outputs.output import Output
from molmoact_data.sources.base import EpisodeRef
from pipelines.config import nested

COLUMNS = (schema.DEPTH_CODES, schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK)
BLACK_FRAME = 7


class StillScene(DotSource):
    """A noisy scene in slowly rising light, with a moving block, and a frame in which the camera drops out."""

    def frames(self, ref: EpisodeRef, camera: str) -> np.ndarray:
        rng = np.random.default_rng(ref.episode_index)
        scene = rng.integers(0, 200, (360, 480, 3)).astype(np.uint8)
        scene[:, 300:] = 0
        rgb = np.repeat(scene[None], ref.num_frames, axis=0)
        for t in range(ref.num_frames):
            rgb[t, :, :300] += 3 * t
            rgb[t, 50:150, 20 * t : 20 * t + 80] = 255
        rgb[BLACK_FRAME:][:1] = 0
        return rgb


def brute_force(
    rgb_TNHWC: np.ndarray, codes_TG: np.ndarray, scale: Callable[[np.ndarray], np.ndarray], *, black_forgets: bool
) -> list[tuple[list[int], list[bool]]]:  # fmt: skip
    """The definition in plain loops: (buffer, mask) per frame."""
    before, buffer, found = None, [0] * 100, []
    for rgb, codes in zip(rgb_TNHWC, codes_TG.tolist(), strict=True):
        black = black_forgets and not rgb.any()
        now = scale(rgb).astype(np.float64)
        updated = [True] * 100
        for cell in range(100) if before is not None and not black else ():
            row, column = divmod(cell, 10)
            box = np.s_[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            a, b = before[box].ravel(), now[box].ravel()
            norms = np.sqrt((a * a).sum()) * np.sqrt((b * b).sum())
            updated[cell] = bool(norms >= 1e-8 and (a * b).sum() / norms < 0.996)
        buffer = [c if u else k for c, u, k in zip(codes, updated, buffer, strict=True)]
        found.append((buffer, updated))
        before = None if black else now
    return found


def with_pil(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).resize((320, 320), Image.Resampling.BILINEAR))


def with_opencv(rgb: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.resize(rgb, (320, 320), interpolation=cv2.INTER_LINEAR)


@pytest.mark.parametrize(
    ("rule", "scale", "forgets"),
    [("consistent", with_pil, True), ("original", with_opencv, False)],
)
def test_the_columns_equal_a_brute_force_computation(
    make_output: Callable[..., Path], rule: str, scale: Any, *, forgets: bool
) -> None:
    """Eight frames a batch, so that the memory outlives a batch; 12, 9, 7 and 5 frames an episode."""
    source = StillScene()
    output = Output.open(make_output(source=source, depth_buffer=rule))
    assert output.layout.depth_buffer
    shares, start = [], 0
    table = pq.read_table(Path(output.storage.root) / schema.DATA_DIR)
    columns = [fixed_array(table[name]) for name in COLUMNS]
    for ref in source.episodes:
        rows = slice(start, start + ref.num_frames)
        codes, buffer, updated = (column[rows] for column in columns)
        expected = brute_force(source.frames(ref, ""), codes, scale, black_forgets=forgets)
        assert [(b.tolist(), u.tolist()) for b, u in zip(buffer, updated, strict=True)] == expected
        shares.append(updated.mean())
        if ref.num_frames > BLACK_FRAME + 1:
            black, after = updated[BLACK_FRAME], updated[BLACK_FRAME + 1]
            assert black.all() == after.all() == forgets
        start = rows.stop
    assert 0.1 < np.mean(shares) < 0.9
    assert (columns[1] != columns[0]).any()


def test_without_it_there_are_no_such_columns(make_output: Callable[..., Path]) -> None:
    names = Output.open(make_output()).layout.arrow_schema().names
    assert not {schema.BUFFER_CODES, schema.DEPTH_UPDATED_MASK} & set(names)


def test_the_command_and_the_companion_agree(
    tmp_path: Path, molmoact: Callable[..., tuple[int, str, str]]
) -> None:
    """A video dataset: the buffer out of preprocessing, and the one that the exporter computes from the frames."""
    dataset = make_dataset(tmp_path / "squares", lengths=[9, 12])
    made = ["preprocess", "--dataset-path", dataset, "--preset", "embedded", "--depth-buffer", "original",
            "--batch-size", 5, "--output-path", tmp_path / "out"]  # fmt: skip
    assert molmoact(*made)[0] == 0
    assert molmoact("validate", tmp_path / "out")[0] == 0
    tables = []
    for name, more in (("stored", ()), ("compared", ("--cosine-threshold", 0.996))):
        told = molmoact(
            "export", tmp_path / "out", "--format", "molmoact2-depth", "--dataset-path", dataset,
            "--output-path", tmp_path / name, *more,
        )  # fmt: skip
        assert told[0] == 0
        tables.append(pq.read_table(tmp_path / name / "data", columns=list(COLUMNS)))
    assert tables[0].equals(tables[1])
    again = ["--action-chunk-size", 5, "--output-path", tmp_path / "again"]
    assert molmoact("retokenize", tmp_path / "out", *again)[0] == 0
    rewritten = pq.read_table(tmp_path / "again" / schema.DATA_DIR)
    first = pq.read_table(tmp_path / "out" / schema.DATA_DIR)
    assert rewritten.select(COLUMNS).equals(first.select(COLUMNS))


def test_the_companion_of_stored_columns_decodes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, molmoact: Callable[..., tuple[int, str, str]]
) -> None:
    from molmoact_data.sources.lerobot.source import LeRobotSource

    dataset = make_dataset(tmp_path / "squares", lengths=[6])
    made = ["--preset", "debug", "--output-path", tmp_path / "out"]
    assert molmoact("preprocess", "--dataset-path", dataset, *made)[0] == 0

    def decode(*_: object) -> None:
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr(LeRobotSource, "iter_frames", decode)
    code, _, said = molmoact(
        "export", tmp_path / "out", "--format", "molmoact2-depth", "--dataset-path", dataset,
        "--output-path", tmp_path / "x_depth",
    )  # fmt: skip
    assert code == 0, said


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ({"depth": "none", "depth_buffer": "consistent"}, "needs depth codes"),
        ({"depth_buffer": "constant"}, "constant"),
    ],
)
def test_what_cannot_be_is_one_line(labels: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        nested({"dataset_path": "x", "output_path": "y", **labels})
