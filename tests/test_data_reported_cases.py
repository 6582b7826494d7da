"""Situations out of public reports, each made here; docs/faults.md lists all of them with their tests."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from made_datasets import FPS, FRONT, make_dataset, make_v3_dataset, rows_path
from made_rlds import INSTRUCTION, features, features_dict, make_rlds, shard_path, steps, tensor
from made_tfrecord import encode_example, encode_record
from numbered import number_of, write_numbered

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.outputs.output import Output
from molmoact_data.publishing.card import write_card
from molmoact_data.sources.channels import OWN_MAPPING
from molmoact_data.sources.lerobot.clock import clock_problem
from molmoact_data.sources.opening import open_source

LENGTHS = (6, 4, 5)


# --- the action is in several columns -------------------------------------------------------------


@pytest.fixture
def humanoid(tmp_path: Path) -> Path:
    """No `action`, but joints and effector apart."""
    root = make_dataset(tmp_path / "humanoid", LENGTHS)
    for episode in range(3):
        table = pq.read_table(rows_path(root, episode))
        action = np.array(table["action"].to_pylist(), np.float32)
        table = table.drop_columns(["action"])
        for name, part in (("actions.joint", action[:, :6]), ("actions.effector", action[:, 6:])):
            table = table.append_column(name, pa.array(list(part), pa.list_(pa.float32())))
        pq.write_table(table, rows_path(root, episode))
    return root


def test_the_error_shows_the_way_and_the_way_works(humanoid: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=OWN_MAPPING) as caught:
        open_source(humanoid)
    (line,) = [part for part in str(caught.value).split("`") if part.startswith("action:")]
    (humanoid / OWN_MAPPING).write_text(line + "\n")
    mapped = open_source(humanoid)
    plain = open_source(make_dataset(tmp_path / "plain", LENGTHS))
    for ref in plain.episodes:
        np.testing.assert_array_equal(
            mapped.read_columns(ref).action, plain.read_columns(ref).action
        )
    assert mapped.info.action_dim == 7
    assert mapped.info.state_dim is None


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"action": [{"feature": "actions.jont"}]}, "Did you mean 'actions.joint'"),
        ({"action": []}, "at least one action channel"),
        ({"action": [{"feature": "actions.joint", "stop": 9}]}, "has 6 values, there is no 0..9"),
        ({"action": [{"feature": "actions.joint", "start": 3, "stop": 2}]}, "0 <= start < stop"),
        ({"action": [{"feature": "actions.joint", "convert": "one_minsu"}]}, "one_minus"),
        ({"acton": [{"feature": "actions.joint"}]}, "Did you mean 'action'"),
        ({"state": [{"feature": "actions.joint"}]}, "action"),
        (["actions.joint"], "key: value"),
    ],
)
def test_a_mapping_that_does_not_fit_is_one_line(
    humanoid: Path, mapping: Any, message: str
) -> None:
    (humanoid / OWN_MAPPING).write_text(yaml.safe_dump(mapping))
    with pytest.raises(UserError, match=message) as caught:
        open_source(humanoid)
    assert OWN_MAPPING in str(caught.value)


NO_NUMBERS = {
    "struct": pa.array([{"x": 1.0, "gripper": 0.0}]),
    "list of struct": pa.array([[{"x": 1.0}] * 7]),
    "decimal": pa.array([[Decimal("0.12")] * 7], pa.list_(pa.decimal128(10, 2))),
    "text": pa.array(["[0.1, 0.2]"]),
    "bytes": pa.array([b"0000"]),
    "null": pa.nulls(1),
}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_a_column_that_holds_no_numbers_is_named_with_its_type(
    tmp_path: Path,
    kind: str,
    mapped: bool,  # noqa: FBT001
) -> None:
    root = make_dataset(tmp_path / "data", LENGTHS)
    replace_column(root, "observation.state", NO_NUMBERS[kind])
    stored = str(NO_NUMBERS[kind].type).replace("item: ", "element: ")  # as Parquet calls it
    said = re.escape(f"is {stored}; it must hold one number or a list of numbers")
    (warning,) = open_source(root).info.warnings
    assert re.match(f"no state: column 'observation.state' {said}", warning)
    replace_column(root, "action", NO_NUMBERS[kind])
    if mapped:
        (root / OWN_MAPPING).write_text("action: [{feature: action}]\n")
    with pytest.raises(UserError, match=f"column 'action' {said}"):
        open_source(root)


def replace_column(root: Path, name: str, cell: pa.Array) -> None:
    for episode, length in enumerate(LENGTHS):
        table = pq.read_table(rows_path(root, episode))
        column = pa.concat_arrays([cell] * length)
        at = table.column_names.index(name)
        pq.write_table(table.set_column(at, name, column), rows_path(root, episode))


def test_channels_are_cut_converted_and_part_of_the_revision(humanoid: Path) -> None:
    mapping = {
        "action": [
            {"feature": "actions.effector", "convert": "one_minus"},
            {"feature": "actions.joint", "start": 2, "stop": 4},
        ],
        "state": [{"feature": "observation.state"}],
    }
    (humanoid / OWN_MAPPING).write_text(yaml.safe_dump(mapping))
    source = open_source(humanoid)
    table = pq.read_table(rows_path(humanoid, 0))
    joints = np.array(table["actions.joint"].to_pylist(), np.float32)
    effector = np.array(table["actions.effector"].to_pylist(), np.float32)
    expected = np.hstack([1 - effector, joints[:, 2:4]])
    np.testing.assert_array_equal(source.read_columns(source.episodes[0]).action, expected)
    mapping["state"] = []
    (humanoid / OWN_MAPPING).write_text(yaml.safe_dump(mapping))
    assert open_source(humanoid).info.revision != source.info.revision


# --- an instruction of numbers --------------------------------------------------------------------

TEXTS = ["push the red block", "schiebe den Würfel", "move left"]


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64"])
@pytest.mark.parametrize("mapped", [True, False])
def test_character_codes_are_an_instruction(tmp_path: Path, dtype: str, mapped: bool) -> None:  # noqa: FBT001
    root = coded(tmp_path / "table", dtype, [text.encode() for text in TEXTS])
    if mapped:
        mapping = {
            "datasets": ["our_lab"], "fps": 10, "action": [{"feature": "action"}], "gripper": "none",
            "instruction": [INSTRUCTION], "cameras": ["observation/image"],
        }  # fmt: skip
        (root / OWN_MAPPING).write_text(yaml.safe_dump(mapping))
    source = open_source(root)
    found = [set(source.read_columns(ref).instructions) for ref in source.episodes]
    assert found == [{text} for text in TEXTS]


@pytest.mark.parametrize("codes", [b"", b"a\0b", b"\xff\xfe"])
def test_codes_that_are_no_text_are_no_instruction(tmp_path: Path, codes: bytes) -> None:
    source = open_source(coded(tmp_path / "table", "int32", [codes, b"push", b"push"]))
    with pytest.raises(EpisodeRejected) as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is RejectReason.INSTRUCTION_MISSING
    assert source.read_columns(source.episodes[1]).instructions[0] == "push"


def test_fractions_are_no_instruction_and_the_error_says_why(tmp_path: Path) -> None:
    root = coded(tmp_path / "table", "float32", [b"push"] * 3)
    mapping = {
        "datasets": ["our_lab"], "fps": 10, "action": [{"feature": "action"}], "gripper": "none",
        "instruction": [INSTRUCTION], "cameras": ["observation/image"],
    }  # fmt: skip
    (root / OWN_MAPPING).write_text(yaml.safe_dump(mapping))
    with pytest.raises(UserError, match="an instruction is a text, or whole numbers in a row"):
        open_source(root)


def coded(root: Path, dtype: str, texts: list[bytes]) -> Path:
    """The instruction as numbers, filled up with zeros."""
    make_rlds(root, LENGTHS, per_shard=3)
    (root / "features.json").write_text(json.dumps(features(**{INSTRUCTION: tensor(dtype, 40)})))
    records = []
    for episode, (text, length) in enumerate(zip(texts, LENGTHS, strict=True)):
        row = np.frombuffer(text.ljust(40, b"\0"), np.uint8)
        kind = np.float32 if dtype.startswith("float") else np.int64
        values = steps(episode, 0, length) | {
            f"steps/{INSTRUCTION}": np.tile(row, length).astype(kind)
        }
        records.append(encode_record(encode_example(values)))
    shard_path(root, 0, 1).write_bytes(b"".join(records))
    assert features_dict
    return root


# --- frames that are stored behind their keyframe ---------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {"g": "12", "bf": "2"}),
        ("mpeg4", {"g": "5", "bf": "3"}),
        ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1"}),
        ("libx265", {"x265-params": "keyint=12:open-gop=1:log-level=none"}),
        ("libsvtav1", {"g": "4", "preset": "12"}),
        ("libvpx-vp9", {"g": "12"}),
        ("mpeg2video", {"g": "12", "bf": "2"}),
    ],
)
@pytest.mark.parametrize("lengths", [(23, 17, 31), (11, 1, 12), (12, 12, 12)])
def test_every_episode_of_a_shared_file_is_decoded_from_the_keyframe_it_needs(
    tmp_path: Path, codec: str, options: dict[str, str], lengths: tuple[int, ...]
) -> None:
    root = make_v3_dataset(tmp_path / "data", lengths, per_file=3)
    path = root / f"videos/{FRONT}/chunk-000/file-000.mp4"
    try:
        write_numbered(path, range(sum(lengths)), codec=codec, options=options)
    except ValueError as error:
        pytest.skip(f"this FFmpeg cannot write it: {error}")
    source = open_source(root)
    starts = np.cumsum((0, *lengths))
    for ref in reversed(source.episodes):
        batches = source.iter_frames(ref, [FRONT], 4)
        numbers = [number_of(rgb) for batch in batches for rgb in batch[FRONT].rgb_NHWC]
        first = int(starts[ref.episode_index])
        assert numbers == list(range(first, first + lengths[ref.episode_index]))


# --- time stamps that are no seconds ----------------------------------------------------------------

CLOCKS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "nanoseconds": (lambda s: (s * 1e9).astype(np.int64), r"step is 1e\+08 \(nanoseconds\?\), at 10 fps it is 0.1 s"),
    "microseconds": (lambda s: (s * 1e6).astype(np.int64), r"step is 100000 \(microseconds\?\)"),
    "milliseconds": (lambda s: (s * 1e3).astype(np.int64), r"step is 100 \(milliseconds\?\)"),
    "milliseconds as float": (lambda s: (s * 1e3).astype(np.float32), r"step is 100 \(milliseconds\?\)"),
    "epoch": (lambda s: s + 1_700_000_000.0, r"starts at 1700000000 \(seconds since 1970\?\) instead of 0"),
    "epoch nanoseconds": (lambda s: ((s + 1.7e9) * 1e9).astype(np.int64), r"nanoseconds\?"),
    "hours": (lambda s: s / 3600, "not in seconds"),
    "frames": (lambda s: np.round(s * FPS).astype(np.float32), r"all are whole .*frames\?.*at 10 fps"),
    "frames from 1": (lambda s: np.round(s * FPS).astype(np.int64) + 1, r"step is 1 and all are whole"),
    "every third frame": (lambda s: np.round(s * FPS).astype(np.int32) * 3, r"step is 3 and all are whole"),
}  # fmt: skip


def retime(root: Path, episode: int, clock: Callable[[np.ndarray], np.ndarray]) -> None:
    table = pq.read_table(rows_path(root, episode))
    times = clock(np.arange(len(table)) / FPS)
    at = table.column_names.index("timestamp")
    pq.write_table(table.set_column(at, "timestamp", pa.array(times)), rows_path(root, episode))


@pytest.mark.parametrize("name", CLOCKS)
def test_a_clock_of_another_unit_is_named_with_both_steps(tmp_path: Path, name: str) -> None:
    clock, message = CLOCKS[name]
    root = make_dataset(tmp_path / "data", LENGTHS)
    for episode in range(3):
        retime(root, episode, clock)
    with pytest.raises(UserError, match=message):
        open_source(root)


@pytest.mark.parametrize("name", CLOCKS)
def test_one_episode_with_another_clock_is_rejected_and_the_others_are_read(
    tmp_path: Path, name: str
) -> None:
    clock, message = CLOCKS[name]
    root = make_dataset(tmp_path / "data", LENGTHS)
    retime(root, 0, clock)
    source = open_source(root)
    assert source.info.fps == FPS
    with pytest.raises(EpisodeRejected, match=message) as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is RejectReason.CLOCK_NOT_SECONDS
    assert len(source.read_columns(source.episodes[1]).action) == LENGTHS[1]


def test_whole_seconds_are_seconds_where_the_rate_says_so() -> None:
    clock = np.arange(5)
    assert clock_problem(clock, 1) is None
    assert clock_problem(2 * clock, 0.5) is None
    assert clock_problem(clock[:1], 10) is None, "0 alone counts nothing"
    assert "nothing else tells the frame rate" in str(clock_problem(clock, None))


def test_no_frame_rate_anywhere_and_a_clock_of_milliseconds(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "data", LENGTHS)
    for episode in range(3):
        retime(root, episode, CLOCKS["milliseconds"][0])
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"fps": None}))
    with pytest.raises(UserError, match=r"its step is 100 .*nothing else tells the frame rate"):
        open_source(root)


# --- readers of an older `datasets` -------------------------------------------------------------------


def test_the_card_names_the_version_of_datasets_that_is_needed(
    make_output: Callable[..., Path],
) -> None:
    assert "datasets >= 4.0" in write_card(Output.open(str(make_output())), picture=None)


# --- two recordings of one name -----------------------------------------------------------------------


def test_two_recordings_of_one_name_are_told_apart_by_revision_and_by_the_users_name(
    molmoact: Any, tmp_path: Path
) -> None:
    def labelled(source: Path, out: str, *flags: str) -> Path:
        done = molmoact(
            "preprocess", "--dataset-path", source, "--output-path", tmp_path / out, "--depth", "none",
            "--pointer", "none", "--statistics", tmp_path / "one" / "dataset_statistics.json", *flags,
        ) if out != "one" else molmoact(
            "preprocess", "--dataset-path", source, "--output-path", tmp_path / out,
            "--depth", "none", "--pointer", "none",
        )  # fmt: skip
        assert done[0] == 0, done
        return tmp_path / out

    monday = make_dataset(tmp_path / "monday" / "recording", LENGTHS)
    tuesday = make_dataset(tmp_path / "tuesday" / "recording", LENGTHS)
    table = pq.read_table(rows_path(tuesday, 0))
    column = pa.array([[0.5] * 7] * len(table), pa.list_(pa.float32()))
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", column), rows_path(tuesday, 0))
    one = labelled(monday, "one")
    two = labelled(tuesday, "two")
    again = shutil.copytree(one, tmp_path / "again")
    code, _, said = molmoact("merge", one, again, "--output-path", tmp_path / "no")
    assert (code, "the same demonstration would count twice" in said) == (2, True)
    assert molmoact("merge", one, two, "--output-path", tmp_path / "both")[0] == 0
    assert molmoact("validate", tmp_path / "both")[0] == 0
    named = labelled(tuesday, "named", "--dataset-name", "tuesday")
    rows = pq.read_table(next((named / "data").glob("*.parquet")))
    assert set(rows["dataset"].to_pylist()) == {"tuesday"}
