"""`--overwrite` replaces what the same command made, and never anything else: inputs, neighbours, strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_commands import Molmoact
from made_datasets import make_dataset

from molmoact_data.errors import UserError
from molmoact_data.sources.base import EpisodeRef
from molmoact_data.sources.selection import select_episodes


def files_of(root: Path) -> dict[str, bytes]:
    found = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "in" / "cups", (6, 4))


def preprocess(
    molmoact: Molmoact, dataset: Path, output: Path, *flags: str
) -> tuple[int, str, str]:
    return molmoact(
        *("preprocess", "--dataset-path", dataset, "--output-path", output, "--depth", "none"),
        *("--pointer", "none", *flags),
    )  # fmt: skip


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_the_dataset_is_never_the_output(molmoact: Molmoact, dataset: Path, flag: str) -> None:
    before = files_of(dataset)
    code, _, err = preprocess(molmoact, dataset, dataset / ".." / "cups", flag)
    assert (code, files_of(dataset)) == (2, before), err
    assert "is what is read" in err


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
@pytest.mark.parametrize("name", ["data/precious.parquet", "manifest.json", "report.html"])
def test_a_folder_that_is_not_ours_is_left_alone(
    molmoact: Molmoact, dataset: Path, tmp_path: Path, name: str, flag: str
) -> None:
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    code, _, err = preprocess(molmoact, dataset, tmp_path / "theirs", flag)
    assert code == 2, err
    assert f"holds {name.split('/')[0]}, but not of a run of molmoact" in err
    assert files_of(tmp_path / "theirs") == {name: b"{}"}


def test_overwriting_a_run_keeps_what_others_put_beside_it(
    molmoact: Molmoact, dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert preprocess(molmoact, dataset, out)[0] == 0
    before = files_of(out)
    for name in ("notes.txt", "data/split.txt"):
        (out / name).write_text("mine")
    code, _, err = preprocess(molmoact, dataset, out, "--overwrite", "--episodes", "1")
    assert code == 0, err
    assert {(out / n).read_text() for n in ("notes.txt", "data/split.txt")} == {"mine"}
    shards = {name for name in files_of(out) if name.endswith(".parquet")}
    assert shards.isdisjoint(before), "the shard of the first run is gone"


def test_a_run_killed_before_its_plan_can_be_resumed_and_overwritten(
    molmoact: Molmoact, dataset: Path, tmp_path: Path
) -> None:
    for flag in ("--resume", "--overwrite"):
        out = tmp_path / flag
        assert preprocess(molmoact, dataset, out)[0] == 0
        for name in files_of(out):
            if name != "dataset_statistics.json":
                (out / name).unlink()
        assert preprocess(molmoact, dataset, out, flag)[0] == 0


@pytest.mark.parametrize("command", ["retokenize", "merge", "export"])
def test_an_output_is_never_replaced_by_what_is_made_of_it(
    molmoact: Molmoact, make_output: Any, command: str
) -> None:
    out = make_output()
    before = files_of(out)
    arguments = {
        "retokenize": [out, "--action-bins", "128"],
        "merge": [out, make_output("other")],
        "export": [out, "--format", "conversations"],
    }[command]
    code, _, err = molmoact(command, *arguments, "--output-path", out, "--overwrite")
    assert (code, files_of(out)) == (2, before), err


def test_an_export_replaces_an_export_and_no_other_folder(
    molmoact: Molmoact, make_output: Any, tmp_path: Path
) -> None:
    arguments = ("export", make_output(), "--format", "conversations", "--output-path")
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    code, _, err = molmoact(*arguments, home, "--overwrite")
    assert code == 2
    assert "was not made by this command" in err
    assert files_of(home) == {"thesis.tex": b"years of work"}
    for flags in ((), ("--overwrite",)):
        assert molmoact(*arguments, tmp_path / "new", *flags)[0] == 0


@pytest.mark.parametrize("below", ["", "deeper"])
def test_an_output_path_that_is_a_file_is_one_clear_line(
    molmoact: Molmoact, dataset: Path, make_output: Any, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("mine")
    target = tmp_path / "file" / below
    for flags in ((), ("--overwrite",), ("--resume",)):
        code, _, err = preprocess(molmoact, dataset, target, *flags)
        assert (code, "is a file" in err) == (2, True), err
    code, _, err = molmoact(
        "export", make_output(), "--format", "reference", "--output-path", target
    )
    assert (code, str(tmp_path / "file") in err) == (2, True), err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_typing_error_in_a_range_is_told_at_once() -> None:
    """A set of so many numbers would take all memory."""
    refs = [EpisodeRef(i, 5) for i in (0, 1, 4)]
    with pytest.raises(UserError, match=r"no episode 2, 3, 5, 6, 7, \.\.\.; the dataset has 3"):
        select_episodes("0-99999999999999", refs)
