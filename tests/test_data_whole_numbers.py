"""A whole number that float32 cannot hold is refused by name, never rounded in silence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset, make_v3_dataset

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.exporters.lerobot.metadata import DatasetDescription, info
from molmoact_data.outputs.measuring import lerobot_statistics, lerobot_statistics_of
from molmoact_data.sources.channels import RoundedNumberError, as_float32
from molmoact_data.sources.opening import open_source

LENGTHS = (6, 4, 5)
STATE = "observation.state"
EXACT = [0, 1, -7, 2**24, -(2**24), 2**24 + 2, 2**60, -(2**62), 3 * 2**61]
ROUNDED = [2**24 + 1, -(2**24) - 1, 2**25 + 2, 2**60 + 1, -(2**60) - 1, 2**63 - 1, 2**62 - 2**36]


@pytest.fixture(params=["v2.1", "v3.0"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make = make_dataset if request.param == "v2.1" else make_v3_dataset
    return make(tmp_path / "data", LENGTHS)


def write_whole(root: Path, column: str, kind: pa.DataType, value: int) -> None:
    """The column as whole numbers in every row; `value` in row 2, dimension 1 of episode 0."""
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        at = table.column_names.index(column)
        rows = [[n % 5 for n in range(len(row))] for row in table[column].to_pylist()]
        for row, episode, frame in zip(
            rows, table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True
        ):
            if (episode, frame) == (0, 2):
                row[1] = value
        pq.write_table(table.set_column(at, column, pa.array(rows, pa.list_(kind))), path)


@pytest.mark.parametrize("column", ["action", STATE])
@pytest.mark.parametrize(
    ("kind", "value"),
    [(pa.int64(), 2**60 + 1), (pa.uint64(), 2**64 - 1), (pa.int32(), -(2**24) - 1)],
)
def test_a_rounded_number_rejects_its_episode_and_no_other(
    root: Path, column: str, kind: pa.DataType, value: int
) -> None:
    write_whole(root, column, kind, value)
    source = open_source(root)
    with pytest.raises(EpisodeRejected, match=f"'{column}', row 2: {value} is a whole") as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is RejectReason.NUMBER_ROUNDED
    assert len(source.read_columns(source.episodes[1]).action) == LENGTHS[1]


@pytest.mark.parametrize("value", [2**60, -(2**24), 2**24 + 2])
def test_a_whole_number_that_float32_holds_is_read_exactly(root: Path, value: int) -> None:
    write_whole(root, "action", pa.int64(), value)
    source = open_source(root)
    assert int(source.read_columns(source.episodes[0]).action[2, 1]) == value


def test_every_whole_number_is_exact_or_refused() -> None:
    for value in (*EXACT, *ROUNDED):
        values = np.array([[0, value]])
        if value in EXACT:
            assert int(as_float32(values, "action")[0, 1]) == value
            continue
        with pytest.raises(RoundedNumberError, match=str(value)):
            as_float32(values, "action")


def test_the_smallest_number_of_64_bits_is_a_power_of_two() -> None:
    assert as_float32(np.array([-(2**63)]), "action")[0] == -(2.0**63)


NANOSECONDS = 1_700_000_000_000_000_001
LARGE = {
    "nanoseconds": np.array([NANOSECONDS + 7 * n for n in (4, 0, 1, 3, 2)]),
    "negative": -np.array([NANOSECONDS + 7 * n for n in (4, 0, 1, 3, 2)]),
    "unsigned": np.array([2**64 - 1 - 7 * n for n in (4, 0, 1, 3, 2)], np.uint64),
    "one beyond": np.array([2**53 + 1, 2**53 - 6, 2**53 - 13, 2**53 - 20, 2**53 - 27]),
}


@pytest.mark.parametrize("name", LARGE)
def test_statistics_of_large_whole_numbers_have_their_own_ends_and_spread(name: str) -> None:
    values = LARGE[name]
    ours = lerobot_statistics(values)
    whole = sorted(map(int, values))
    assert (ours["min"], ours["max"]) == ([whole[0]], [whole[-1]])
    assert ours["std"] == pytest.approx([7 * 2**0.5], rel=1e-12), "float64 made them all the same"
    assert ours["q50"] == [float(whole[2])]
    assert json.loads(json.dumps(ours))["min"] == [whole[0]]


def test_the_whole_range_of_64_bits_has_a_spread() -> None:
    ours = lerobot_statistics(np.array([[-(2**63)], [2**63 - 1]]))
    assert (ours["min"], ours["max"]) == ([-(2**63)], [2**63 - 1])
    assert ours["std"] == pytest.approx([2.0**63])


@pytest.mark.parametrize("other", [pa.float64(), pa.uint64()])
def test_large_whole_numbers_are_not_joined_with_another_type(
    root: Path, tmp_path: Path, other: pa.DataType
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    add_stamp(root, pa.int64(), NANOSECONDS)
    add_stamp(copy, other, 1)
    whole = lerobot_statistics_of([str(root)], ["stamp"])["stamp"]
    assert (whole["min"], whole["max"]) == ([NANOSECONDS], [NANOSECONDS])
    with pytest.raises(UserError, match=r"'action' has rows of \(3,\) and of \(7,\) numbers"):
        lerobot_statistics_of(
            [str(root), str(make_dataset(tmp_path / "narrow", (5,), action_dim=3))], ["action"]
        )
    kind = other.to_pandas_dtype().__name__
    with pytest.raises(UserError, match=f"'stamp' is of different types .*{kind}.*one type"):
        lerobot_statistics_of([str(root), str(copy)], ["stamp"])


def add_stamp(root: Path, kind: pa.DataType, value: int) -> None:
    for path in sorted((root / "data").rglob("*.parquet")):
        table = pq.read_table(path)
        stamps = pa.array([value] * len(table), pa.int64()).cast(kind)
        pq.write_table(table.append_column("stamp", stamps), path)


@pytest.mark.parametrize("fps", [29.97, 0.5, 30.0])
def test_an_exported_frame_rate_is_not_cut_off(fps: float) -> None:
    written = info("v3.0", DatasetDescription(fps, None, {}), {}, 0, [])["fps"]
    assert written == fps
    assert isinstance(written, int) == fps.is_integer(), "LeRobot writes whole rates as such"
