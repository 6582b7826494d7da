"""Rows read, rows declared and pictures used are three numbers that agree, or the episode is not used."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from av.stream import Disposition
from made_datasets import FPS, FRONT, make_dataset, make_v3_dataset, rows_path, video_path
from numbered import number_of, write_numbered

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.base import EpisodeRef, EpisodeSource
from molmoact_data.sources.opening import open_source

LENGTHS = (12, 9, 14, 7)
ROWS = "data/chunk-000/file-{:03d}.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    root = make_dataset(tmp_path / "v2", LENGTHS)
    for episode, length in enumerate(LENGTHS):
        write_numbered(video_path(root, episode), range(length))
    return root


@pytest.fixture
def v3(tmp_path: Path) -> Path:
    return make_v3_dataset(tmp_path / "v3", LENGTHS)


def lengths(source: EpisodeSource) -> dict[int, int | RejectReason]:
    """Rows of every episode, or why there are none."""
    return {ref.episode_index: length_or_reason(source, ref) for ref in source.episodes}


def length_or_reason(source: EpisodeSource, ref: EpisodeRef) -> int | RejectReason:
    try:
        rows = len(source.read_columns(ref).action)
        pictures = sum(len(b[FRONT].rgb_NHWC) for b in source.iter_frames(ref, [FRONT], 5))
    except EpisodeRejected as rejected:
        return rejected.reason
    assert pictures == rows
    return rows


def numbers(source: EpisodeSource, position: int) -> list[int]:
    batches = source.iter_frames(source.episodes[position], [FRONT], 5)
    return [number_of(rgb) for batch in batches for rgb in batch[FRONT].rgb_NHWC]


def repack(root: Path, cuts: list[int]) -> None:
    """All rows again, in files that end at these rows, whatever the episodes are."""
    table = pa.concat_tables(
        pq.read_table(path) for path in sorted((root / "data").rglob("*.parquet"))
    )
    shutil.rmtree(root / "data")
    for number, (first, last) in enumerate(zip([0, *cuts], [*cuts, len(table)], strict=True)):
        path = root / ROWS.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(first, last - first), path)


@pytest.mark.parametrize(
    "cuts", [[16], [5], [12, 14, 16], [33], [21, 35], [41], list(range(1, 42))]
)
def test_rows_that_are_spread_over_files_are_found(v3: Path, cuts: list[int]) -> None:
    repack(v3, cuts)
    source = open_source(v3)
    assert lengths(source) == dict(enumerate(LENGTHS))
    if cuts != [21, 35]:
        assert any("are not where the metadata says" in w for w in source.info.warnings)
    columns = source.read_columns(source.episodes[1])
    original = open_source(make_v3_dataset(v3.parent / "whole", LENGTHS))
    np.testing.assert_array_equal(
        columns.action, original.read_columns(original.episodes[1]).action
    )


@pytest.mark.parametrize("named", [0, 1, 7, None])
def test_an_episode_in_another_file_than_the_metadata_names_is_found(
    v3: Path, named: int | None
) -> None:
    table = pq.read_table(v3 / EPISODES).to_pylist()
    table[2]["data/file_index"] = named
    pq.write_table(pa.Table.from_pylist(table), v3 / EPISODES)
    assert lengths(open_source(v3)) == dict(enumerate(LENGTHS))


@pytest.mark.parametrize("lost", [0, 3, 8])
def test_a_row_that_is_nowhere_rejects_its_episode_with_all_numbers(v3: Path, lost: int) -> None:
    path = v3 / ROWS.format(0)
    table = pq.read_table(path)
    gone = pc.and_(pc.equal(table["episode_index"], 1), pc.equal(table["frame_index"], lost))
    pq.write_table(table.filter(pc.invert(gone)), path)
    source = open_source(v3)
    expected: dict[int, Any] = dict(enumerate(LENGTHS)) | {1: RejectReason.LENGTHS_DISAGREE}
    assert lengths(source) == expected
    with pytest.raises(
        EpisodeRejected, match=f"8 rows in .*, 9 rows declared, 9 pictures of {FRONT}"
    ):
        source.read_columns(source.episodes[1])


def test_the_same_rows_in_two_files_are_taken_from_the_one_that_is_named(v3: Path) -> None:
    shutil.copy(v3 / ROWS.format(0), v3 / ROWS.format(5))
    source = open_source(v3)
    assert lengths(source) == dict(enumerate(LENGTHS))
    assert any("episode 0 declares 12 frames and has 24 rows" in w for w in source.info.warnings)


@pytest.mark.parametrize("change", ["lost at the front", "lost at the end", "one more"])
def test_another_number_of_rows_than_declared_rejects(v2: Path, change: str) -> None:
    path = rows_path(v2, 1)
    table = pq.read_table(path)
    more = pa.concat_tables([table, table.slice(8)])
    changed = {
        "lost at the front": table.slice(1),
        "lost at the end": table.slice(0, 8),
        "one more": more,
    }
    pq.write_table(changed[change], path)
    assert lengths(open_source(v2)) == dict(enumerate(LENGTHS)) | {1: RejectReason.LENGTHS_DISAGREE}


def test_rows_that_say_they_are_of_another_episode_are_not_used(v2: Path) -> None:
    shutil.copy(rows_path(v2, 0), rows_path(v2, 4))
    shutil.copy(video_path(v2, 0), video_path(v2, 4))
    source = open_source(v2)
    with pytest.raises(
        EpisodeRejected, match="row 0 of episode 4 says it is of episode 0"
    ) as caught:
        source.read_columns(source.episodes[4])
    assert caught.value.reason is RejectReason.ROWS_OUT_OF_ORDER


def change_rows(root: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    for path in sorted((root / "data").rglob("*.parquet")):
        pq.write_table(change(pq.read_table(path)), path)


@pytest.mark.parametrize("gone", [["frame_index", "timestamp"], ["frame_index"]])
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_rows_without_frame_numbers_are_in_order_by_their_index(
    version: str, gone: list[str], request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(version)
    change_rows(root, lambda table: table.drop_columns(gone))
    assert lengths(open_source(root)) == dict(enumerate(LENGTHS))
    change_rows(
        root,
        lambda t: t.set_column(
            t.column_names.index("index"), "index", t["index"].take(np.arange(len(t))[::-1])
        ),
    )
    source = open_source(root)
    assert set(lengths(source).values()) == {RejectReason.ROWS_OUT_OF_ORDER}
    with pytest.raises(EpisodeRejected, match=r"row 1 says index \d+ after \d+, .* no frame_index"):
        source.read_columns(source.episodes[0])


def test_rows_without_any_number_of_a_frame_keep_their_order(v2: Path) -> None:
    change_rows(v2, lambda table: table.drop_columns(["frame_index", "index"]))
    assert lengths(open_source(v2)) == dict(enumerate(LENGTHS))


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ([(0, 12), (12, 21), (21, 35), (35, 42)], None),
        ([(100, 112), (112, 121), (0, 14), (14, 21)], None),
        ([(0, 11), (11, 21), (21, 35), (35, 42)], "of 2 .*: episode 0 is rows 0..11, and 12 long"),
        ([(0, 12), (12, 21), (21, 35), (42, 35)], "of 1 .*: episode 3 is rows 42..35, and 7 long"),
    ],
)
def test_row_spans_that_contradict_the_lengths_are_said(
    v3: Path, spans: list[tuple[int, int]], said: str | None
) -> None:
    table = pq.read_table(v3 / EPISODES)
    for place, name in enumerate(("dataset_from_index", "dataset_to_index")):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array([span[place] for span in spans], pa.int64()))
    pq.write_table(table, v3 / EPISODES)
    source = open_source(v3)
    found = [w for w in source.info.warnings if "dataset_from_index" in w]
    assert len(found) == (said is not None)
    assert said is None or re.search(said, found[0])
    assert lengths(source) == dict(enumerate(LENGTHS)), "the rows' own numbers decide"


def add_stream(path: Path, *, cover: bool) -> None:
    """A second video stream, in front: another film, or one picture that is marked as the cover."""
    original = path.rename(path.with_suffix(".old.mp4"))
    with av.open(str(original)) as read, av.open(str(path), "w") as written:
        film = read.streams.video[0]
        packets = [packet for packet in read.demux(film) if packet.dts is not None]
        first = written.add_stream_from_template(film)
        if cover:
            second = written.add_stream("mjpeg", rate=1, width=64, height=64, pix_fmt="yuvj420p")
            second.disposition = Disposition.attached_pic.value
        else:
            second = written.add_stream("libx264", rate=FPS, width=64, height=64)
        other = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        written.start_encoding()
        written.mux([*second.encode(other), *second.encode(None)])
        for packet in packets:
            packet.stream = first
            written.mux(packet)
    original.unlink()


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_file_with_two_films_is_rejected_by_name(
    version: str, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(version)
    path = video_path(root, 1) if version == "v2" else sorted((root / "videos").rglob("*.mp4"))[0]
    add_stream(path, cover=False)
    source = open_source(root)
    found = lengths(source)
    assert found[1] is RejectReason.VIDEO_STREAMS_AMBIGUOUS
    if version == "v2":
        assert found == dict(enumerate(LENGTHS)) | {1: RejectReason.VIDEO_STREAMS_AMBIGUOUS}
    with pytest.raises(EpisodeRejected, match=f"{path.name} has 2 video streams"):
        list(source.iter_frames(source.episodes[1], [FRONT], 5))


def test_a_cover_picture_is_no_film(v2: Path) -> None:
    add_stream(video_path(v2, 1), cover=True)
    source = open_source(v2)
    assert numbers(source, 1) == list(range(9))


def retime(root: Path, times: np.ndarray, episode: int = 0) -> None:
    table = pq.read_table(rows_path(root, episode))
    at = table.column_names.index("timestamp")
    pq.write_table(
        table.set_column(at, "timestamp", pa.array(times, pa.float32())), rows_path(root, episode)
    )


@pytest.mark.parametrize("drift", [0.6, 1.0, 3.0, -3.0])
def test_a_drifting_clock_with_a_picture_per_row_is_matched_by_number(
    v2: Path, drift: float, caplog: pytest.LogCaptureFixture
) -> None:
    steps = np.arange(12)
    retime(v2, (steps + drift * np.sin(np.pi * steps / 11) ** 2 * 0.9) / FPS)
    source = open_source(v2)
    assert numbers(source, 0) == list(range(12))
    drifted = np.round(steps + drift * np.sin(np.pi * steps / 11) ** 2 * 0.9)
    assert ("drifts against the video" in caplog.text) == (len(np.unique(drifted)) < 12)


def test_two_rows_never_share_a_picture(v2: Path) -> None:
    steps = np.arange(12.0)
    steps[5:8] = (4.7, 4.9, 5.3)
    retime(v2, steps / FPS)
    write_numbered(
        video_path(v2, 0), [n for n in range(12) if n != 6], times=[n for n in range(12) if n != 6]
    )
    found = lengths(open_source(v2))
    assert found[0] is RejectReason.FRAME_TIMESTAMP_MISMATCH
    assert found[1] == 9


def test_rows_at_half_the_rate_of_the_video_take_every_second_picture(v2: Path) -> None:
    write_numbered(video_path(v2, 0), range(23))
    retime(v2, np.arange(12) * 2 / FPS)
    for episode, length in list(enumerate(LENGTHS))[1:]:
        write_numbered(video_path(v2, episode), range(2 * length - 1))
        retime(v2, np.arange(length) * 2 / FPS, episode)
    source = open_source(v2)
    assert numbers(source, 0) == list(range(0, 23, 2))


def declare(root: Path, height: int, width: int) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"][FRONT]["shape"] = [height, width, 3]
    path.write_text(json.dumps(info))


def test_a_video_of_another_size_than_its_neighbours_is_rejected(v2: Path) -> None:
    write_numbered(video_path(v2, 1), range(9), hw=(96, 128))
    write_numbered(video_path(v2, 3), range(7), hw=(96, 64))
    expected: dict[int, Any] = dict(enumerate(LENGTHS))
    expected |= {1: RejectReason.PICTURE_SIZE_DIFFERS, 3: RejectReason.PICTURE_SIZE_DIFFERS}
    assert lengths(open_source(v2)) == expected


def test_a_size_that_no_picture_has_is_said_and_replaced(v2: Path) -> None:
    declare(v2, 480, 640)
    source = open_source(v2)
    assert (source.info.cameras[0].height, source.info.cameras[0].width) == (64, 64)
    assert any("is 640x480, its pictures are 64x64" in w for w in source.info.warnings)
    assert lengths(source) == dict(enumerate(LENGTHS))


QUARTER_TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}


@pytest.mark.parametrize("angle", QUARTER_TURNS)
def test_a_turned_video_is_labelled_as_a_player_shows_it(v2: Path, angle: int) -> None:
    """A phone writes the pictures as the sensor has them, and says how to hold them."""
    upright = (64, 96)
    for episode, length in enumerate(LENGTHS):
        write_numbered(video_path(v2, episode), range(length), hw=upright)
    declare(v2, *upright)
    plain = np.concatenate(list(pictures(open_source(v2))))
    for episode in range(len(LENGTHS)):
        turn(video_path(v2, episode), QUARTER_TURNS[angle])
    declare(v2, *(upright if angle == 180 else upright[::-1]))
    with av.open(str(video_path(v2, 0))) as container:  # FFmpeg counts the other way round
        assert next(container.decode(video=0)).rotation % 360 == -angle % 360
    source = open_source(v2)
    assert source.info.warnings == ()
    turned = np.concatenate(list(pictures(source)))
    np.testing.assert_array_equal(turned, np.rot90(plain, -angle // 90, axes=(1, 2)))


def test_one_turned_video_among_others_is_rejected(v2: Path) -> None:
    for episode, length in enumerate(LENGTHS):
        write_numbered(video_path(v2, episode), range(length), hw=(64, 96))
    declare(v2, 64, 96)
    turn(video_path(v2, 2), QUARTER_TURNS[90])
    assert lengths(open_source(v2)) == dict(enumerate(LENGTHS)) | {
        2: RejectReason.PICTURE_SIZE_DIFFERS
    }


def pictures(source: EpisodeSource) -> list[np.ndarray]:
    return [b[FRONT].rgb_NHWC for b in source.iter_frames(source.episodes[0], [FRONT], 5)]


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write the display matrix of the only track; angles are clockwise, as players count them."""
    a, b, c, d = (n << 16 for n in matrix)
    content = path.read_bytes()
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = content.index(identity, content.index(b"tkhd"))
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + turned + content[at + len(identity) :])
