"""Statistics, configurations and texts that are damaged: one line and exit code 2, never a label made of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_commands import Molmoact
from made_datasets import make_dataset

Entry = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "cups", (6, 4))


@pytest.fixture
def statistics(molmoact: Molmoact, dataset: Path, tmp_path: Path) -> Entry:
    path = tmp_path / "good.json"
    assert molmoact("stats", dataset, "--output-path", path)[0] == 0
    return json.loads(path.read_text())


def put(path: str, value: Any) -> Callable[[Entry], None]:
    """Sets the value at a dotted path of the entry."""
    *parents, last = path.split(".")

    def spoil(entry: Entry) -> None:
        for name in parents:
            entry = entry[name]
        entry[last] = value

    return spoil


DAMAGED: dict[str, tuple[Callable[[Entry], Any], str]] = {
    "null": (put("action.q01", [None] * 7), "null, NaN or infinite values in q01"),
    "NaN": (put("action.q99", [float("nan")] * 7), "null, NaN or infinite values in q99"),
    "words": (put("action.q01", "x"), "must be lists of numbers"),
    "upside down": (put("action.q99", [-100.0] * 7), "q01 above its q99"),
    "short": (put("action.q01", [0.0]), "differ in length"),
    "no action": (lambda entry: entry.pop("action"), "no object `action`"),
    "no count": (lambda entry: entry.pop("num_transitions"), "no whole number 'num_transitions'"),
    "other spec": (put("spec", [{"x": 1}] * 7), "action spec of the statistics is damaged"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_statistics_never_become_bins(
    molmoact: Molmoact, dataset: Path, statistics: Entry, tmp_path: Path, name: str
) -> None:
    spoil, message = DAMAGED[name]
    damaged = copy.deepcopy(statistics)
    spoil(next(iter(damaged.values())))
    (tmp_path / "damaged.json").write_text(json.dumps(damaged))
    code, err = preprocess(molmoact, dataset, tmp_path / "damaged.json")
    assert (code, message in err) == (2, True), err


@pytest.mark.parametrize("content", [b"hello", b"\xff\xfe", b"[1]", b"{}", b'{"a": null}'])
def test_what_is_no_statistics_file_is_told(
    molmoact: Molmoact, dataset: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "damaged.json").write_bytes(content)
    code, err = preprocess(molmoact, dataset, tmp_path / "damaged.json")
    assert (code, "damaged.json" in err) == (2, True), err


def preprocess(molmoact: Molmoact, dataset: Path, statistics: Path) -> tuple[int, str]:
    out = statistics.parent / "out"
    code, _, err = molmoact(
        *("preprocess", "--dataset-path", dataset, "--output-path", out, "--depth", "none"),
        *("--pointer", "none", "--statistics", statistics),
    )  # fmt: skip
    assert not list(out.rglob("*.parquet"))
    return code, err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--output-path", ""), "output_path is empty"),
        (("--output-path", "out", "--dataset-path", ""), "dataset_path is empty"),
        (("--output-path", "out", "--min-coverage", "2"), "min_coverage is 0..1"),
        (("--output-path", "out", "--preset", "embedded", "--arms", "2"), "knows one gripper"),
    ],
)
def test_flags_that_cannot_be_meant(
    molmoact: Molmoact, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    teachers = ("--depth", "none", "--pointer", "none") if "--preset" not in flags else ()
    code, _, err = molmoact("preprocess", "--dataset-path", dataset, *teachers, *flags)
    assert (code, message in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_is_not_text(molmoact: Molmoact, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    code, _, err = molmoact("preprocess", "--config", tmp_path / "c.yaml")
    assert (code, "is not valid YAML" in err) == (2, True), err


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"text": "\xff"}\n', "is not UTF-8 text"), (b"[" * 100_000, "line 1 is not valid JSON")],
)
def test_texts_that_cannot_be_read(
    molmoact: Molmoact, statistics: Entry, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "texts.jsonl").write_bytes(content)
    code, _, err = molmoact(
        "parse", tmp_path / "texts.jsonl", "--norm-stats", tmp_path / "good.json"
    )
    assert (code, message in err) == (2, True), err


def test_what_parse_prints_is_always_json(
    molmoact: Molmoact, statistics: Entry, tmp_path: Path
) -> None:
    """A number of 400 digits is infinite as a float, which JSON cannot say."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = "\ufeff" + json.dumps({"text": f"[[{'9' * 400}, 1]]"})
    (tmp_path / "texts.jsonl").write_text(text, encoding="utf-8")
    stats = ("--norm-stats", tmp_path / "good.json")
    code, out, err = molmoact("parse", tmp_path / "texts.jsonl", *stats, "--json")
    assert code == 0, err
    (line,) = (json.loads(line, parse_constant=refuse) for line in out.splitlines())
    assert line["traces"] == []
    assert any("malformed trace dropped" in problem for problem in line["problems"])


def test_parse_refuses_statistics_without_numbers(
    molmoact: Molmoact, statistics: Entry, tmp_path: Path
) -> None:
    next(iter(statistics.values()))["action"]["q01"] = [None] * 7
    (tmp_path / "bad.json").write_text(json.dumps(statistics))
    (tmp_path / "texts.jsonl").write_text('{"text": "x"}\n')
    code, _, err = molmoact(
        "parse", tmp_path / "texts.jsonl", "--norm-stats", tmp_path / "bad.json"
    )
    assert (code, "no finite numbers" in err) == (2, True), err


def test_training_data_without_the_labels_of_the_stage_say_which(
    molmoact: Molmoact, dataset: Path, tmp_path: Path
) -> None:
    from molmoact_train.debug.tiny import write_tiny_checkpoint

    out, checkpoint = tmp_path / "out", write_tiny_checkpoint(tmp_path / "tiny")
    teachers = ("--depth", "none", "--pointer", "none")
    assert (
        molmoact("preprocess", "--dataset-path", dataset, "--output-path", out, *teachers)[0] == 0
    )
    train = ("train", "--stage", "debug", "--checkpoint", checkpoint, "--data", out)
    code, _, err = molmoact(*train, "--output-path", tmp_path / "run")
    assert (code, f"--data {out} has no sample for" in err) == (2, True), err
    assert "no trace column: 10" in err


def test_training_data_without_actions_do_not_blame_the_traces(
    molmoact: Molmoact, dataset: Path, tmp_path: Path
) -> None:
    from molmoact_train.data.rendering import KIND_NEEDS
    from molmoact_train.data.sources import open_source
    from molmoact_train.data.split import SourceOptions

    out = tmp_path / "out"
    points = ("--pointer", "column", "--pointer-column", "gripper_xy", "--pointer-units", "pixels")
    arguments = ("--dataset-path", dataset, "--output-path", out, "--depth", "none", *points)
    assert molmoact("preprocess", *arguments, "--no-process-actions")[0] == 0
    source = open_source(
        str(out), SourceOptions(needs={"trajectory": KIND_NEEDS["trajectory"]}, max_images=2)
    )
    assert (source.size, dict(source.left_out)) == (0, {"no action column": 10})


@pytest.mark.parametrize("below", ["", "deeper"])
def test_a_run_folder_that_is_a_file_is_one_line(tmp_path: Path, below: str) -> None:
    from molmoact_data.errors import UserError
    from molmoact_train.checkpoint import claim_run
    from molmoact_train.config import resolve

    (tmp_path / "file").write_text("mine")
    config = resolve("debug", {"checkpoint": "c", "data": ["d"], "output_path": "s"})
    with pytest.raises(UserError, match="is a file"):
        claim_run(tmp_path / "file" / below, config, resume=False, overwrite=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_ctrl_c_says_that_nothing_complete_is_lost(
    molmoact: Molmoact, monkeypatch: pytest.MonkeyPatch, dataset: Path, tmp_path: Path
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.preprocess.preprocess", interrupt)
    arguments = ("--dataset-path", dataset, "--output-path", tmp_path / "out")
    code, out, err = molmoact(
        "preprocess", *arguments, "--depth", "none", "--pointer", "none", "--json"
    )
    assert (code, out) == (130, "")
    assert "--resume" in err.splitlines()[-1]
