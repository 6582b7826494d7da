"""A few hundred of the broken inputs of `make fuzz`, and that the harness can fail."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz.__main__ import KINDS, SLOW, run
from fuzz.datasets import EVERYTHING, kind, v2, v3
from fuzz.outcomes import EQUAL, EXPLAINED, REFUSED, REJECTED, TRACEBACK, UNEXPLAINED, table

from molmoact_data.sources.video.spans import SharedFile

COUNT = 50


@pytest.mark.parametrize("name", KINDS)
def test_no_broken_input_is_a_traceback_or_a_row_that_nobody_can_explain(name: str) -> None:
    tallies = run(COUNT, seed=7, only=name)
    assert tallies[name].failures == []
    counts = tallies[name].counts
    assert counts.total() == max(1, COUNT // SLOW.get(name, 1))
    if name not in SLOW:
        assert counts[REFUSED] + counts[REJECTED] > counts.total() / 10, table(tallies)
        assert counts[EQUAL] + counts[EXPLAINED] > 0, table(tallies)


def test_the_harness_sees_another_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the check of shared files out of order, a shifted stretch must be found out here."""

    def shifted(root: Path, _: Random) -> tuple[str, set[str]]:
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        rows = pq.read_table(path).to_pylist()
        for name in ("from_timestamp", "to_timestamp"):
            rows[0][f"videos/observation.images.front/{name}"] += 0.1
        pq.write_table(pa.Table.from_pylist(rows), path)
        return "shifted", set()

    assert kind(v3, shifted)(Random(0), tmp_path / "sound" / "0")[1] == REJECTED
    monkeypatch.setattr(SharedFile, "problem", lambda *_: None)
    assert kind(v3, shifted)(Random(0), tmp_path / "broken" / "0")[1] == UNEXPLAINED


def test_the_harness_sees_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> None:
        raise KeyError("shards")

    def nothing(*_: object) -> tuple[str, set[str]]:
        return "nothing", EVERYTHING

    one = kind(v2, nothing)
    assert one(Random(0), tmp_path / "0")[1] == EQUAL
    monkeypatch.setattr("fuzz.datasets.read_rows", bug)
    done, outcome, why = one(Random(0), tmp_path / "1")
    assert (done, outcome) == ("nothing", TRACEBACK)
    assert "KeyError" in why
