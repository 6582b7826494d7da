"""What the program says about itself, and what it takes that no command's own signature has."""

from __future__ import annotations

import logging
from pathlib import Path

import click
import pytest
from made_commands import ALL, Molmoact, Words

from molmoact_data.errors import UserError


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_a_flag_too(
    flag: str, molmoact: Molmoact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"molmoact": "1.2.3"}.__getitem__)
    assert molmoact(flag) == (0, "1.2.3\n", "")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_has_its_whole_name_at_80_columns(
    words: Words, molmoact: Molmoact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = molmoact(*words, "--help")
    shown = click.unstyle(out)
    hidden = [p for p in ALL[words].params if not getattr(p, "hidden", False)]
    names = [name for p in hidden for name in (*p.opts, *p.secondary_opts) if name[0] == "-"]
    assert [name for name in names if name not in shown] == []
    assert "…" not in shown
    framed = [line for line in shown.splitlines() if line[:1] in "│╭╰"]
    assert max(map(len, framed)) <= 80
    (example,) = (line for line in shown.splitlines() if line.startswith(" Example: molmoact "))
    assert "…" not in example, "an example is one line, to be copied"


@pytest.mark.parametrize("arguments", [["-v", "parse"], ["parse", "-v"], ["parse", "--verbose"]])
def test_verbose_stands_before_or_after_the_command(
    arguments: list[str], molmoact: Molmoact, tmp_path: Path
) -> None:
    given = ["parse", tmp_path / "t.jsonl", "--norm-stats", tmp_path / "none.json"]
    where = arguments.index("parse")
    code, _, _ = molmoact(*arguments[:where], *given, *arguments[where + 1 :])
    assert code == 2
    assert logging.getLogger("pipelines").level == logging.DEBUG
    molmoact(*given)
    assert logging.getLogger("pipelines").level == logging.INFO


def test_old_names_of_flags_work_with_a_note(
    molmoact: Molmoact, make_output, tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    code, _, err = molmoact("validate", make_output(), "--report", found)
    assert (code, found.is_file()) == (0, True), err
    assert "note: --report is called --output-path now." in err
    code, _, err = molmoact(
        "vqvae", "convert", f"--input={tmp_path}", "--output", tmp_path / "x.pt"
    )
    assert code == 2
    assert "note: --input is called --input-path now.\nnote: --output is called" in err
    assert "no VQ-VAE" in err


def test_an_old_name_means_nothing_where_there_is_no_new_one(molmoact: Molmoact) -> None:
    code, _, err = molmoact("parse", "t", "--norm-stats", "s", "--report", "x")
    assert code == 2
    assert "No such option" in click.unstyle(err)


def test_one_spelling_for_what_is_written() -> None:
    """`--output-path` wherever a command writes; nothing else ends in folder, out or file for it."""
    old = {"--output", "--report", "--sheet", "--save-folder", "--out", "--output-folder"}
    found = {(words, *(old & set(p.opts))) for words, c in ALL.items() for p in c.params}
    assert [entry for entry in found if len(entry) > 1] == []


def test_a_yaml_from_before_is_read_with_a_note_and_a_stored_run_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from molmoact_train.config import from_json, resolve, to_json

    written = {"checkpoint": "c", "data": ["d"], "save_folder": "run"}
    config = resolve("debug", written)
    assert config.output_path == "run"
    assert "note: save_folder is called output_path now." in caplog.text
    with pytest.raises(UserError, match="both are given: leave save_folder out"):
        resolve("debug", {**written, "output_path": "other"})
    stored = to_json(config)
    stored["save_folder"] = stored.pop("output_path")
    assert from_json(stored) == config
