"""A v3.0 video that several episodes share: whatever is wrong with it, no episode gets another's pictures.

Every picture carries its number in the file as it was recorded, and every row its number in the dataset:
a picture that is given to a row must carry that row's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import FPS, FRONT, make_v3_dataset
from numbered import number_of, numbered_frames, write_numbered

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.opening import open_source

LENGTHS = (12, 9, 14, 7)
STARTS = np.cumsum((0, *LENGTHS))
TOTAL = int(STARTS[-1])
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{FRONT}/chunk-000/file-000.mp4"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = make_v3_dataset(tmp_path / "v3", LENGTHS, per_file=4)
    write_numbered(root / VIDEO, range(TOTAL))
    return root


def read(root: Path) -> tuple[list[int], dict[int, EpisodeRejected]]:
    """Episodes whose pictures are all the true ones, and the rejected ones; a wrong picture is a failure."""
    source = open_source(root)
    sound, rejected = [], {}
    for ref in source.episodes:
        try:
            source.read_columns(ref)
            batches = [b[FRONT].rgb_NHWC for b in source.iter_frames(ref, [FRONT], 5)]
        except EpisodeRejected as error:
            rejected[ref.episode_index] = error
            continue
        first = int(STARTS[ref.episode_index])
        numbers = [number_of(rgb) for rgb in np.concatenate(batches)]
        assert numbers == list(range(first, first + LENGTHS[ref.episode_index]))
        sound.append(ref.episode_index)
    return sound, rejected


def shift(root: Path, episode: int, *, by_s: float = 0.0, end_s: float = 0.0) -> None:
    """Move an episode's stretch of the file, and its end further."""
    table = pq.read_table(root / EPISODES).to_pylist()
    table[episode][f"videos/{FRONT}/from_timestamp"] += by_s
    table[episode][f"videos/{FRONT}/to_timestamp"] += by_s + end_s
    pq.write_table(pa.Table.from_pylist(table), root / EPISODES)


def test_the_file_as_it_should_be_is_read_whole(root: Path) -> None:
    assert read(root) == ([0, 1, 2, 3], {})


@pytest.mark.parametrize("by_s", [0.1, 0.2, 0.5, 1.0, -0.1, -0.6, 30.0])
@pytest.mark.parametrize("episode", [0, 1, 3])
def test_a_shifted_stretch_rejects_its_episode_and_no_other(
    root: Path, by_s: float, episode: int
) -> None:
    shift(root, episode, by_s=by_s)
    sound, rejected = read(root)
    assert sound == [e for e in range(4) if e != episode]
    assert rejected[episode].reason is RejectReason.VIDEO_SPAN_CONTRADICTED
    assert "the metadata lets the episode start at" in rejected[episode].detail


def test_stretches_that_overlap_or_swap_places_are_no_proof(root: Path) -> None:
    shift(root, 1, by_s=-0.5, end_s=0.5)  # begins inside episode 0, ends where it should
    assert read(root)[0] == [0, 2, 3]
    shift(root, 1, by_s=0.5 + LENGTHS[2] / FPS, end_s=-0.5)
    shift(root, 2, by_s=-LENGTHS[1] / FPS)
    assert read(root)[0] == [0, 3]


@pytest.mark.parametrize("at", [0, 5, 12, 15, 30, TOTAL])
def test_one_picture_too_many_rejects_every_episode_of_the_file(root: Path, at: int) -> None:
    numbers = list(range(TOTAL))
    write_numbered(root / VIDEO, [*numbers[:at], 100, *numbers[at:]])
    sound, rejected = read(root)
    assert sound == []
    assert all(r.reason is RejectReason.VIDEO_SPAN_CONTRADICTED for r in rejected.values())
    assert f"are {TOTAL} frames by the metadata, the file holds {TOTAL + 1}" in str(rejected[0])


@pytest.mark.parametrize("lost", [[0], [5], [15], [TOTAL - 1], [3, 4, 5], range(12)])
def test_lost_pictures_reject_every_episode_of_the_file(root: Path, lost: Iterable[int]) -> None:
    write_numbered(root / VIDEO, [n for n in range(TOTAL) if n not in lost])
    assert read(root)[0] == []


def test_a_picture_that_is_missing_at_its_time_costs_its_own_episode(root: Path) -> None:
    kept = [n for n in range(TOTAL) if n != 15]
    write_numbered(root / VIDEO, kept, times=kept)  # the clock runs on: nothing behind it moves
    sound, rejected = read(root)
    assert sound == [0, 2, 3]
    assert rejected[1].reason is RejectReason.FRAME_TIMESTAMP_MISMATCH


def test_a_file_that_was_cut_off_keeps_the_episodes_before(root: Path) -> None:
    write_numbered(root / VIDEO, range(TOTAL), faststart=True)
    content = (root / VIDEO).read_bytes()
    with av.open(str(root / VIDEO)) as container:
        packets = [p for p in container.demux(video=0) if p.pts is not None]
    (root / VIDEO).write_bytes(content[: packets[int(STARTS[3]) + 3].pos])
    sound, rejected = read(root)
    assert sound == [0, 1, 2]
    assert rejected[3].reason is RejectReason.VIDEO_UNDECODABLE


def drop(episode: int) -> Callable[[list[dict]], list[dict]]:
    return lambda table: [row for row in table if row["episode_index"] != episode]


@pytest.mark.parametrize("episode", [0, 2, 3])
def test_an_episode_taken_out_of_the_table_leaves_its_pictures_behind(
    root: Path, episode: int
) -> None:
    table = drop(episode)(pq.read_table(root / EPISODES).to_pylist())
    pq.write_table(pa.Table.from_pylist(table), root / EPISODES)
    assert read(root) == ([e for e in range(4) if e != episode], {})


def test_a_wrong_length_in_the_table_costs_its_own_episode(root: Path) -> None:
    table = pq.read_table(root / EPISODES).to_pylist()
    table[1]["length"] += 1
    pq.write_table(pa.Table.from_pylist(table), root / EPISODES)
    sound, rejected = read(root)
    assert sound == [0, 2, 3]
    assert "9 rows in data/chunk-000/file-000.parquet, 10 rows declared, 9 pictures" in str(
        rejected[1]
    )


def test_the_strip_is_what_the_tests_say_it_is() -> None:
    assert [number_of(rgb) for rgb in numbered_frames([0, 1, 100, 2])] == [0, 1, 100, 2]
