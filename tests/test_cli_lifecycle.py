"""The commands of the data life cycle, through the door."""

from __future__ import annotations

import json
from pathlib import Path

from made_hub import RunningHub
from made_outputs import DotSource

from molmoact_data import schema


def test_validate_passes_then_fails_with_3_and_a_report(molmoact, make_output, tmp_path):
    out = make_output()
    code, stdout, _ = molmoact("validate", out, "--json")
    assert (code, json.loads(stdout)["passed"]) == (0, True)

    (out / schema.STATISTICS_FILE).unlink()
    code, _, stderr = molmoact("validate", out, "--output-path", tmp_path / "r.json")

    assert code == 3
    assert "statistics_missing" in stderr
    assert json.loads((tmp_path / "r.json").read_text())["findings"] == {"statistics_missing": 1}


def test_stats_retokenize_merge_validate_in_a_row(molmoact, make_output, tmp_path):
    one, two = make_output("one"), make_output("two", source=DotSource(name="spots"))
    both = tmp_path / "both.json"
    assert molmoact("stats", one, two, "--key", "both", "--output-path", both)[0] == 0
    assert molmoact("stats", one, two, "--output-path", both)[0] == 2  # it exists
    for path in (one, two):
        target = tmp_path / f"{path.name}-new"
        code, out, _ = molmoact(
            "retokenize", path, "--statistics", both, "--output-path", target, "--json"
        )
        assert (code, json.loads(out)["frames"]) == (0, 33)
    merged = tmp_path / "merged"
    code, out, _ = molmoact(
        "merge", tmp_path / "one-new", tmp_path / "two-new", "--output-path", merged
    )
    assert code == 0
    assert molmoact("validate", merged)[0] == 0


def test_retokenize_without_a_change_and_merge_of_one_are_mistakes(molmoact, make_output, tmp_path):
    out = make_output()
    code, _, stderr = molmoact("retokenize", out, "--output-path", tmp_path / "x")
    assert (code, "nothing to change" in stderr) == (2, True)
    code, _, stderr = molmoact("merge", out, "--output-path", tmp_path / "x")
    assert (code, "at least two" in stderr) == (2, True)


def test_stats_as_lerobot_quantiles_on_stdout(molmoact, make_output):
    code, out, _ = molmoact("stats", make_output(), "--lerobot-feature", "action")
    assert code == 0
    assert set(json.loads(out)["action"]) == {
        *("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
    }


def test_export_says_what_it_wrote_and_refuses_an_unknown_format(molmoact, make_output, tmp_path):
    out = make_output()
    target = tmp_path / "conv"
    code, stdout, _ = molmoact(
        "export", out, "--format", "conversations", "--output-path", target, "--json"
    )
    assert (code, json.loads(stdout)["rows"]) == (0, 29)  # 4 episodes end in a trace of one point
    code, _, stderr = molmoact(
        "export", out, "--format", "referense", "--output-path", tmp_path / "y"
    )
    assert code == 2
    assert "Did you mean 'reference'" in stderr


def test_publish_dry_run_lists_and_uploads_nothing(molmoact, make_output):
    with RunningHub() as hub:
        code, out, err = molmoact(
            *("publish", make_output(), "--repo-id", "lab/dots", "--endpoint", hub.url),
            *("--dry-run", "--json"),
        )
        assert hub.log == []
    assert code == 0
    listed = [entry["path"] for entry in json.loads(out)["files"]]
    assert "README.md" in listed
    assert err == ""
    assert listed == sorted(listed)


def test_publish_uploads_what_its_dry_run_listed(molmoact, make_output, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    command = ("publish", make_output(), "--repo-id", "lab/dots", "--endpoint", hub.url)
    planned = molmoact(*command, "--dry-run", "--json")
    assert hub.log == []
    code, out, err = molmoact(*command, "--json")
    assert code == 0
    assert out == planned[1]
    assert sorted(hub.files) == sorted(entry["path"] for entry in json.loads(out)["files"])
    assert "published at" in err


def test_publish_of_an_unfinished_run_is_refused(molmoact, tmp_path):
    (tmp_path / "out").mkdir()
    code, _, stderr = molmoact("publish", tmp_path / "out", "--repo-id", "lab/dots")
    assert code == 2
    assert "did not finish" in stderr


def test_download_fetches_and_names_the_nearest_set(molmoact, tmp_path):
    with RunningHub() as hub:
        hub.files["libero_10/train.parquet"] = b"rows"
        code, out, _ = molmoact(
            *("download", "libero_10", "--output-path", tmp_path, "--endpoint", hub.url, "--json")
        )
    assert code == 0
    folder = Path(json.loads(out)[0]["folder"])
    assert (folder / "libero_10" / "train.parquet").read_bytes() == b"rows"
    code, _, stderr = molmoact("download", "libero_1O", "--output-path", tmp_path)
    assert code == 2
    assert "libero_10" in stderr
