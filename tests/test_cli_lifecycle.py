"""The commands of the data life cycle: help, a happy path and a failing case each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from made_hub import RunningHub
from made_outputs import DotSource

import cli
from molmoact_data import schema

COMMANDS = ("validate", "retokenize", "merge", "stats", "export", "publish", "download")


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the real entry point; returns exit code, stdout, stderr."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["molmoact", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"molmoact {command}" in " ".join(out.split())


def test_validate_passes_then_fails_with_3_and_a_report(run, make_output, tmp_path):
    out = make_output()
    code, stdout, _ = run("validate", out, "--json")
    assert (code, json.loads(stdout)["passed"]) == (0, True)

    (out / schema.STATISTICS_FILE).unlink()
    code, _, stderr = run("validate", out, "--report", tmp_path / "r.json")

    assert code == 3
    assert "statistics_missing" in stderr
    assert json.loads((tmp_path / "r.json").read_text())["findings"] == {"statistics_missing": 1}


def test_stats_retokenize_merge_validate_in_a_row(run, make_output, tmp_path):
    one, two = make_output("one"), make_output("two", source=DotSource(name="spots"))
    both = tmp_path / "both.json"
    assert run("stats", one, two, "--key", "both", "--output-path", both)[0] == 0
    assert run("stats", one, two, "--output-path", both)[0] == 2  # it exists
    for path in (one, two):
        target = tmp_path / f"{path.name}-new"
        code, out, _ = run(
            "retokenize", path, "--statistics", both, "--output-path", target, "--json"
        )
        assert (code, json.loads(out)["frames"]) == (0, 33)
    merged = tmp_path / "merged"
    code, out, _ = run("merge", tmp_path / "one-new", tmp_path / "two-new", "--output-path", merged)
    assert code == 0
    assert run("validate", merged)[0] == 0


def test_retokenize_without_a_change_and_merge_of_one_are_mistakes(run, make_output, tmp_path):
    out = make_output()
    code, _, stderr = run("retokenize", out, "--output-path", tmp_path / "x")
    assert (code, "nothing to change" in stderr) == (2, True)
    code, _, stderr = run("merge", out, "--output-path", tmp_path / "x")
    assert (code, "at least two" in stderr) == (2, True)


def test_stats_as_lerobot_quantiles_on_stdout(run, make_output):
    code, out, _ = run("stats", make_output(), "--lerobot-feature", "action")
    assert code == 0
    assert set(json.loads(out)["action"]) == {
        *("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
    }


def test_export_says_what_it_wrote_and_refuses_an_unknown_format(run, make_output, tmp_path):
    out = make_output()
    target = tmp_path / "conv"
    code, stdout, _ = run(
        "export", out, "--format", "conversations", "--output-path", target, "--json"
    )
    assert (code, json.loads(stdout)["rows"]) == (0, 33)
    code, _, stderr = run("export", out, "--format", "referense", "--output-path", tmp_path / "y")
    assert code == 2
    assert "Did you mean 'reference'" in stderr


def test_publish_dry_run_lists_and_uploads_nothing(run, make_output):
    with RunningHub() as hub:
        code, out, err = run(
            *("publish", make_output(), "--repo-id", "lab/dots", "--endpoint", hub.url),
            *("--dry-run", "--json"),
        )
        assert hub.log == []
    assert code == 0
    listed = [entry["path"] for entry in json.loads(out)["files"]]
    assert "README.md" in listed
    assert all(path in err for path in listed)


def test_publish_of_an_unfinished_run_is_refused(run, tmp_path):
    (tmp_path / "out").mkdir()
    code, _, stderr = run("publish", tmp_path / "out", "--repo-id", "lab/dots")
    assert code == 2
    assert "did not finish" in stderr


def test_download_fetches_and_names_the_nearest_set(run, tmp_path):
    with RunningHub() as hub:
        hub.files["libero_10/train.parquet"] = b"rows"
        code, out, _ = run(
            *("download", "libero_10", "--output-path", tmp_path, "--endpoint", hub.url, "--json")
        )
    assert code == 0
    folder = Path(json.loads(out)[0]["folder"])
    assert (folder / "libero_10" / "train.parquet").read_bytes() == b"rows"
    code, _, stderr = run("download", "libero_1O", "--output-path", tmp_path)
    assert code == 2
    assert "libero_10" in stderr
