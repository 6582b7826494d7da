"""LeRobot metadata as people's own recorders write it: read where it can be meant one way, else one clear error.

The rows and videos are sound; only `meta/` and the types of the bookkeeping columns are spoilt.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import FPS, FRONT, make_dataset, make_v3_dataset, rows_path

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.sources.opening import open_source

LENGTHS = (6, 4, 5)
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
Spoil = Callable[[Path], object]


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "v2", LENGTHS)


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return make_v3_dataset(tmp_path / "v3", LENGTHS)


def info(**changes: Any) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def feature(key: str, value: Any) -> Spoil:
    def spoil(root: Path) -> None:
        features = json.loads((root / "meta/info.json").read_text())["features"]
        info(features=features | {key: value})(root)

    return spoil


def text(path: str, content: str) -> Spoil:
    return lambda root: (root / path).write_text(content, encoding="utf-8")


def listed(column: str, values: pa.Array | None) -> Spoil:
    """Another column of v3.0's episode table; None removes it."""

    def spoil(root: Path) -> None:
        table = pq.read_table(root / EPISODES)
        at = table.column_names.index(column)
        table = table.remove_column(at)
        pq.write_table(
            table if values is None else table.append_column(column, values), root / EPISODES
        )

    return spoil  # fmt: skip


def rewritten(root: Path, column: str, values: pa.Array, episode: int = 0) -> None:
    table = pq.read_table(rows_path(root, episode))
    at = table.column_names.index(column)
    pq.write_table(table.set_column(at, column, values), rows_path(root, episode))


V2_ERRORS: dict[str, tuple[Spoil, str]] = {
    "features null": (info(features=None), "'features' must be an object"),
    "a feature is null": (feature("odd", None), r"'features\.odd' must be an object"),
    "a shape is text": (feature("action", {"dtype": "float32", "shape": "7"}), r"'features\.action\.shape'"),
    "a camera is flat": (feature(FRONT, {"dtype": "video", "shape": [3]}), r"\[height, width, channels\]"),
    "fps in words": (info(fps="ten"), "'fps' must be a positive number; it is \"ten\""),
    "chunks_size in words": (info(chunks_size="many"), "'chunks_size' must be a positive number"),
    "unknown name in data_path": (info(data_path="data/{nope}.parquet"), r"'data_path' must be a path with \{episode"),
    "bad format in data_path": (info(data_path="data/{episode_index:zz}.parquet"), "'data_path' must be a path"),
    "unknown name in video_path": (info(video_path="v/{camera}.mp4"), "'video_path' must be a path"),
    "not Unicode": (lambda r: (r / "meta/info.json").write_bytes(b"\xff\xfe{}"), "is not JSON"),
    "task without index": (text("meta/tasks.jsonl", '{"task": "x"}\n'), "line 1 needs a whole number 'task_index'"),
    "task is a list": (text("meta/tasks.jsonl", "\n[1]\n"), "line 2 must hold one JSON object"),
    "half a surrogate pair": (text("meta/tasks.jsonl", '{"task_index": 0, "task": "\\ud800"}\n'), "surrogates"),
    "episode without index": (text("meta/episodes.jsonl", '{"length": 3}\n'), "needs a whole number 'episode_index'"),
    "length in words": (
        text("meta/episodes.jsonl", '{"episode_index": 0, "length": "abc"}\n'), "'length'; it is 'abc'"),
}  # fmt: skip


@pytest.mark.parametrize("name", V2_ERRORS)
def test_v2_metadata_that_means_nothing_is_one_error(v2: Path, name: str) -> None:
    spoil, message = V2_ERRORS[name]
    spoil(v2)
    with pytest.raises(UserError, match=message):
        open_source(v2)


V3_ERRORS: dict[str, tuple[Spoil, str]] = {
    "no episode_index": (listed("episode_index", None), "has no column 'episode_index'"),
    "no chunk_index": (listed("data/chunk_index", None), "has no column 'data/chunk_index'"),
    "episode twice": (listed("episode_index", pa.array([0, 1, 1])), "lists episode 1 twice"),
    "episode null": (listed("episode_index", pa.array([0, None, 2])), "an episode without a number"),
    "index in words": (listed("episode_index", pa.array(["a", "b", "c"])), "'episode_index', must be int64"),
    "a v2 path": (info(data_path="data/episode_{episode_index:06d}.parquet"), r"\{chunk_index\}, \{file_index\}"),
    "task index in words": (
        lambda r: pq.write_table(pa.table({"task_index": ["a"], "task": ["x"]}), r / "meta/tasks.parquet"),
        "task_index must be int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", V3_ERRORS)
def test_v3_metadata_that_means_nothing_is_one_error(v3: Path, name: str) -> None:
    spoil, message = V3_ERRORS[name]
    spoil(v3)
    with pytest.raises(UserError, match=message):
        open_source(v3)


HARMLESS: dict[str, Spoil] = {
    "byte order mark": lambda r: (r / "meta/info.json").write_bytes(
        b"\xef\xbb\xbf" + (r / "meta/info.json").read_bytes()
    ),
    "Windows line ends": text("meta/tasks.jsonl", '{"task_index": 0, "task": "x"}\r\n\r\n'),
    "numbers as text": info(fps="10", chunks_size="1000"),
    "chunks of zero": info(chunks_size=0),
    "paths null": info(data_path=None, video_path=None),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_spellings_are_read(v2: Path, name: str) -> None:
    HARMLESS[name](v2)
    source = open_source(v2)
    assert [ref.num_frames for ref in source.episodes] == list(LENGTHS)
    assert source.info.fps == FPS


def test_a_line_separator_within_a_task_does_not_end_its_line(v2: Path) -> None:
    task = "push\u2028the square\x85"
    line = json.dumps({"task_index": 0, "task": task}, ensure_ascii=False)
    (v2 / "meta/tasks.jsonl").write_text(line + "\n", encoding="utf-8")
    episode = json.dumps({"episode_index": 0, "tasks": [task], "length": 6}, ensure_ascii=False)
    (v2 / "meta/episodes.jsonl").write_text(episode + "\n", encoding="utf-8")
    source = open_source(v2)
    assert source.read_columns(source.episodes[0]).instructions == (task,) * LENGTHS[0]


def test_a_damaged_file_without_metadata_is_an_episode_that_is_rejected(v2: Path) -> None:
    rows_path(v2, 9).write_bytes(b"PAR1junk")
    source = open_source(v2)
    assert [ref.episode_index for ref in source.episodes] == [0, 1, 2, 9]
    with pytest.raises(EpisodeRejected) as caught:
        source.read_columns(source.episodes[3])
    assert caught.value.reason is RejectReason.ROWS_UNREADABLE


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (f"videos/{FRONT}/chunk_index", RejectReason.VIDEO_MISSING),
        (f"videos/{FRONT}/from_timestamp", RejectReason.VIDEO_MISSING),
    ],
)
def test_an_episode_without_a_place_is_rejected_and_its_neighbour_read(
    v3: Path, column: str, reason: RejectReason
) -> None:
    values = pq.read_table(v3 / EPISODES)[column].to_pylist()
    listed(column, pa.array([values[0], None, values[2]], pa.float64()))(v3)
    source = open_source(v3)

    def read(position: int) -> int:
        ref = source.episodes[position]
        source.read_columns(ref)
        return sum(len(b[FRONT].rgb_NHWC) for b in source.iter_frames(ref, [FRONT], 4))

    with pytest.raises(EpisodeRejected, match=column) as caught:
        read(1)
    assert caught.value.reason is reason
    assert read(0) == LENGTHS[0]


def test_numbers_that_came_through_pandas_are_still_indices(v3: Path) -> None:
    listed("episode_index", pa.array([0.0, 1.0, 2.0]))(v3)
    listed("length", pa.array([6.0, None, 5.0]))(v3)
    listed("data/chunk_index", pa.array(["0", "0", "0"]))(v3)
    source = open_source(v3)
    assert [(r.episode_index, r.num_frames) for r in source.episodes] == [(0, 6), (1, 0), (2, 5)]
    assert any("declares nan frames and has 4 rows" in w for w in source.info.warnings)


def test_a_camera_that_the_episode_table_does_not_know_is_a_missing_one(v3: Path) -> None:
    for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
        listed(f"videos/{FRONT}/{name}", None)(v3)
    assert open_source(v3).info.missing_cameras == (FRONT,)


@pytest.mark.parametrize("column", ["timestamp", "frame_index", "task_index"])
def test_bookkeeping_in_words_rejects_the_episode(v2: Path, column: str) -> None:
    rewritten(v2, column, pa.array(["x"] * LENGTHS[0]))
    source = open_source(v2)
    with pytest.raises(EpisodeRejected, match=f"'{column}': string is not numeric") as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is RejectReason.ROWS_UNREADABLE
    assert source.read_columns(source.episodes[1]).action.shape == (LENGTHS[1], 7)


def test_bookkeeping_in_lists_of_one_is_read_and_of_two_rejected(v2: Path) -> None:
    for column in ("timestamp", "frame_index", "task_index"):
        values = pq.read_table(rows_path(v2, 0))[column].to_pylist()
        rewritten(v2, column, pa.array([[value] for value in values]))
    source = open_source(v2)
    columns = source.read_columns(source.episodes[0])
    np.testing.assert_allclose(columns.timestamp_s, np.arange(LENGTHS[0]) / FPS, rtol=1e-6)
    rewritten(v2, "timestamp", pa.array([[t, t] for t in columns.timestamp_s.tolist()]))
    source = open_source(v2)
    with pytest.raises(EpisodeRejected, match="12 numbers in 6 rows"):
        source.read_columns(source.episodes[0])


def test_one_row_without_a_time_does_not_take_the_frame_rate_from_all(v2: Path) -> None:
    rewritten(v2, "timestamp", pa.array([0.0, None, 0.2, 0.3, 0.4, 0.5], pa.float32()))
    source = open_source(v2)
    assert source.info.fps == FPS
    assert source.info.warnings == ()


def test_categorical_text_is_an_instruction(v2: Path) -> None:
    (v2 / "meta/tasks.jsonl").unlink()
    (v2 / "meta/episodes.jsonl").unlink()
    table = pq.read_table(rows_path(v2, 0)).drop_columns("task_index")
    words = pa.array(["lift"] * LENGTHS[0]).dictionary_encode()
    pq.write_table(table.append_column("task", words), rows_path(v2, 0))
    source = open_source(v2)
    assert source.read_columns(source.episodes[0]).instructions == ("lift",) * LENGTHS[0]


def test_rows_that_start_late_are_not_called_a_truncated_video(v2: Path) -> None:
    rewritten(v2, "timestamp", pa.array(100 + np.arange(LENGTHS[0]) / FPS, pa.float32()))
    source = open_source(v2)
    with pytest.raises(EpisodeRejected, match=r"row 0 at 100\.0000 s") as caught:
        list(source.iter_frames(source.episodes[0], [FRONT], 4))
    assert caught.value.reason is RejectReason.VIDEO_SHORTER_THAN_ROWS
