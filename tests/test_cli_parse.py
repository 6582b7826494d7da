from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import foreign, needs_golden
from made_commands import Molmoact

from molmoact_data.text.prompts import answer

ENTRY = {"action": {"q01": [-1.0, 0.0], "q99": [1.0, 2.0], "mask": [True, True]}}


def write(path: Path, *objects: Any) -> str:
    path.write_text("".join(json.dumps(obj) + "\n" for obj in objects))
    return str(path)


def text_of(bins: list[list[int]]) -> str:
    return answer(
        "reasoning", depth_codes=[1] * 100, trace=[[[1, 2]]], action_bins=bins, num_images=2
    )


@needs_golden
def test_real_generations(molmoact: Molmoact) -> None:
    folder = foreign("generations")
    source = folder / "molmoact_libero_spatial.jsonl"
    code, stdout, _ = molmoact(
        "parse", source, "--norm-stats", folder / "norm_stats.json", "--json"
    )
    out = [json.loads(line) for line in stdout.splitlines()]
    expected = [json.loads(line) for line in source.read_text().splitlines()]
    assert code == 0
    assert len(out) == len(expected) == 80
    for ours, theirs in zip(out, expected, strict=True):
        assert set(ours) == {"depth_codes", "traces", "actions", "problems"}
        assert ours["traces"] == theirs["trace"]
        np.testing.assert_allclose(ours["actions"], theirs["action"], atol=1e-14)
        spelled = ["".join(f"<DEPTH_{k}>" for k in codes) for codes in ours["depth_codes"]]
        assert [f"<DEPTH_START>{s}<DEPTH_END>" for s in spelled] == theirs["depth"]


def test_last_dimension_is_never_unnormalised(tmp_path: Path, molmoact: Molmoact) -> None:
    stats = write(tmp_path / "stats.json", {"robot": ENTRY})
    texts = write(tmp_path / "texts.jsonl", {"text": text_of([[1, 256]])})
    code, out, _ = molmoact("parse", texts, "--norm-stats", stats, "--json")
    assert code == 0
    (row,) = json.loads(out)["actions"]
    assert row == pytest.approx([-1 + 1 / 255, 1 - 1 / 255])


def test_strict_ends_with_3_after_printing_everything(tmp_path: Path, molmoact: Molmoact) -> None:
    stats = write(tmp_path / "stats.json", {"robot": ENTRY})
    good = {"text": text_of([[1, 2]])}
    bad = {"text": good["text"].replace("âºŁ", "ëĤĤ")}
    texts = write(tmp_path / "texts.jsonl", bad, good)
    code, out, err = molmoact("parse", texts, "--norm-stats", stats, "--json", "--strict")
    assert code == 3
    problems = [json.loads(line)["problems"] for line in out.splitlines()]
    assert problems == [["unknown action token 'ëĤĤ' at row 0, dimension 1: read as bin 1"], []]
    assert "1 of 2" in err


@pytest.mark.parametrize(
    ("stats", "arguments", "message"),
    [
        ({"a": ENTRY, "b": ENTRY}, [], "Keys: a, b"),
        ({"a": ENTRY}, ["--unnorm-key", "z"], "no key 'z'. Keys: a"),
        ({"a": {}}, [], "no action.q01"),
        ([], [], "must hold an object"),
    ],
)
def test_statistics_that_do_not_fit_end_with_2(
    tmp_path: Path,
    molmoact: Molmoact,
    stats: Any,
    arguments: list[str],
    message: str,
) -> None:
    texts = write(tmp_path / "texts.jsonl", {"text": "x"})
    path = write(tmp_path / "stats.json", stats)
    code, _, err = molmoact("parse", texts, "--norm-stats", path, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "line 1 is not valid JSON"), ('{"texts": "x"}', "line 1 has no `text`")],
)
def test_lines_that_are_no_generations_end_with_2(
    tmp_path: Path, molmoact: Molmoact, content: str, message: str
) -> None:
    (tmp_path / "texts.jsonl").write_text(content)
    stats = write(tmp_path / "stats.json", {"robot": ENTRY})
    code, _, err = molmoact("parse", tmp_path / "texts.jsonl", "--norm-stats", stats)
    assert code == 2
    assert message in err


def test_missing_file_ends_with_2(tmp_path: Path, molmoact: Molmoact) -> None:
    stats = write(tmp_path / "stats.json", {"robot": ENTRY})
    code, _, err = molmoact("parse", tmp_path / "none.jsonl", "--norm-stats", stats)
    assert code == 2
    assert "none.jsonl" in err
