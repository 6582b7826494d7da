"""The door: every command explains itself, mistakes are one line and exit code 2, JSON is alone on stdout."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from made_commands import ALL, Molmoact, Words
from made_datasets import make_dataset

from cli import explained

ROOT = Path(__file__).resolve().parent.parent


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as a shell starts it."""
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "COLUMNS": "200"},
        check=False,
    )


# Command -> what to type, and a piece of what is said. It runs in an empty folder but for `full/file`.
MISTAKES: dict[Words, tuple[str, str]] = {
    ("demo",): ("--output-path full", "full is not empty. Add --resume"),
    ("preview",): ("--dataset-path d --output-path s.png --preset demo", "unknown preset 'demo'"),
    ("preprocess",): ("--dataset-path nowhere --depth none", "--output-path is missing"),
    ("viz",): ("--output-path sheet.png", "give a preprocessed output"),
    ("evaluate-labels",): ("--dataset-path nowhere --output-path q", "no such path: 'nowhere'"),
    ("validate",): ("full --processor nowhere", "nowhere is not a folder"),
    ("stats",): ("nowhere", "no such path: 'nowhere'"),
    ("retokenize",): ("nowhere --output-path new", "nothing to change"),
    ("merge",): ("nowhere full --output-path new", "nowhere has no manifest.json"),
    ("export",): ("nowhere --format csv --output-path new", "unknown export format 'csv'"),
    ("publish",): ("nowhere --repo-id name", "--repo-id wants USER/NAME"),
    ("download",): ("libero_1O --output-path data", "Did you mean 'libero_10'"),
    ("train",): ("--stage finetun", "Did you mean 'finetune'"),
    ("predict",): ("--checkpoint full --images no.png --instruction x", "cannot read the image"),
    ("parse",): ("texts.jsonl --norm-stats no.json", "cannot read the statistics no.json"),
    ("unshard",): ("--checkpoint full --output-path new", "full is not a training checkpoint"),
    ("merge-lora",): ("--adapter full --output-path new", "full is not an adapter folder"),
    ("export-hf",): ("--checkpoint /no/where --output-path new", "no such folder"),
    ("eval",): ("--checkpoint full --output-path new", "full is not a model folder"),
    ("serve",): ("--checkpoint full", "full is not a model folder"),
    ("portal",): ("--checkpoint full", "full is not a model folder"),
    ("preprocess-web",): ("pixmo_kap --input-path full --output-path new", "Did you mean 'pixmo_cap'"),
    ("version",): ("extra", "unexpected extra argument"),
    ("vqvae", "train"): ("--preset debg --output-path run", "Did you mean 'debug'"),
    ("vqvae", "eval"): ("--checkpoint full", "no data to measure on"),
    ("vqvae", "encode"): ("--checkpoint full --input-path no.npy --output-path c.npy", "no depth to encode at no.npy"),
    ("vqvae", "decode"): ("--checkpoint full --output-path d.png", "give either --tokens TEXT or"),
    ("vqvae", "convert"): ("--input-path no.pt --output-path c.pt", "no VQ-VAE checkpoint at no.pt"),
}  # fmt: skip

# Command -> the test in which it does its work.
WORKS: dict[Words, str] = {
    ("demo",): "test_cli.py::test_demo_goes_from_episodes_to_an_answer_without_network_and_resumes",
    ("preview",): "test_data_viz.py::test_preview_command",
    ("preprocess",): "test_cli.py::test_preprocess_prints_one_json_object_and_nothing_else_on_stdout",
    ("viz",): "test_data_viz.py::test_viz_command",
    ("evaluate-labels",): "test_data_label_evaluation.py::test_command_measures_a_dataset_on_disk",
    ("validate",): "test_cli_lifecycle.py::test_validate_passes_then_fails_with_3_and_a_report",
    ("stats",): "test_cli_lifecycle.py::test_stats_retokenize_merge_validate_in_a_row",
    ("retokenize",): "test_cli_lifecycle.py::test_stats_retokenize_merge_validate_in_a_row",
    ("merge",): "test_cli_lifecycle.py::test_stats_retokenize_merge_validate_in_a_row",
    ("export",): "test_cli_lifecycle.py::test_export_says_what_it_wrote_and_refuses_an_unknown_format",
    ("publish",): "test_cli_lifecycle.py::test_publish_uploads_what_its_dry_run_listed",
    ("download",): "test_cli_lifecycle.py::test_download_fetches_and_names_the_nearest_set",
    ("train",): "test_cli_train.py::test_debug_trains_resumes_exports_and_predicts",
    ("predict",): "test_cli_train.py::test_debug_trains_resumes_exports_and_predicts",
    ("parse",): "test_cli_parse.py::test_last_dimension_is_never_unnormalised",
    ("unshard",): "test_train_export.py::test_dry_runs_say_what_would_be_written_and_write_nothing",
    ("merge-lora",): "test_train_export.py::test_commands_merge_export_and_predict",
    ("export-hf",): "test_train_export.py::test_commands_merge_export_and_predict",
    ("eval",): "test_robot_evaluate.py::test_the_command_leaves_what_others_rely_on",
    ("serve",): "test_robot_serving.py::test_the_command_listens_when_warm_answers_and_ends_on_a_signal",
    ("preprocess-web",): "test_pipelines_web.py::test_the_command_plans_and_runs",
    ("portal",): "test_robot_portal.py::test_the_command_opens_a_page_over_the_policy",
    ("version",): "test_cli.py::test_version_is_that_of_the_package",
    ("vqvae", "train"): "test_vqvae_commands.py::test_train_command_runs_and_resumes",
    ("vqvae", "eval"): "test_vqvae_commands.py::test_eval_reports_and_holds_to_min_codes",
    ("vqvae", "encode"): "test_vqvae_commands.py::test_encode_says_what_it_did",
    ("vqvae", "decode"): "test_vqvae_commands.py::test_encode_and_decode_as_tokens",
    ("vqvae", "convert"): "test_vqvae_commands.py::test_conversion_keeps_the_codes",
}  # fmt: skip


def test_no_command_is_forgotten() -> None:
    assert set(MISTAKES) == set(ALL), "a new command needs a mistake to make with it"
    assert set(WORKS) == set(ALL), "a new command needs a test in which it works"


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_command_has_help_with_an_example(words: Words, molmoact: Molmoact) -> None:
    code, out, _ = molmoact(*words, "--help")
    shown = " ".join(click.unstyle(out).split())
    assert code == 0
    assert f"molmoact {' '.join(words)} [OPTIONS]" in shown
    assert f"Example: molmoact {' '.join(words)}" in shown


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_no_option_is_without_an_explanation(words: Words) -> None:
    named = [p for p in ALL[words].params if not getattr(p, "hidden", False)]
    assert [p.name for p in named if not getattr(p, "help", None)] == []


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_shows_every_explanation_as_it_is_written(
    words: Words, monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    """Square brackets would vanish: they are Rich's own language."""
    monkeypatch.setenv("COLUMNS", "400")
    _, out, _ = molmoact(*words, "--help")
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", click.unstyle(out)).split())
    written = [" ".join((getattr(p, "help", None) or "").split()) for p in ALL[words].params]
    assert [text for text in written if text.replace("\\[", "[") not in shown] == []


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_a_mistake_is_exit_code_2_and_says_what_is_wrong(
    words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments, piece = MISTAKES[words]
    code, out, err = molmoact(*words, *arguments.split())
    assert (code, out) == (2, "")
    assert piece in " ".join(click.unstyle(err).split())
    assert "Traceback" not in err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full"], "nothing was written"


@pytest.mark.parametrize("words", WORKS, ids=" ".join)
def test_the_test_in_which_it_works_types_the_command(words: Words) -> None:
    file, _, name = WORKS[words].partition("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    (test,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    assert words[-1] in {n.value for n in ast.walk(test) if isinstance(n, ast.Constant)}


def test_a_process_says_a_mistake_in_one_line() -> None:
    flags = ("--dataset-path", "/no/such", "--output-path", "o", "--preset", "embedded")
    done = process("preprocess", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")


MISTAKEN_FLAGS = {
    "no output": (["--dataset-path", "/no/such"], "--output-path is missing"),
    "unknown preset": (["--output-path", "o", "--preset", "embeded"], "Did you mean 'embedded'"),
    "role without key": (["--output-path", "o", "--camera", "primary"], "--camera wants ROLE=KEY"),
}


@pytest.mark.parametrize(("flags", "piece"), MISTAKEN_FLAGS.values(), ids=MISTAKEN_FLAGS)
def test_preprocess_explains_a_mistake_in_one_line(
    flags: list[str], piece: str, molmoact: Molmoact
) -> None:
    code, out, err = molmoact("preprocess", "--dataset-path", "/no/such", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert piece in err


def test_preprocess_prints_one_json_object_and_nothing_else_on_stdout(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    done = process(
        *("preprocess", "--dataset-path", str(dataset), "--output-path", str(tmp_path / "out")),
        *("--depth", "none", "--pointer", "none", "--json"),
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    expected = {"episodes": 2, "frames": 11, "shards": 1, "rejected_episodes": 0}
    assert {key: summary[key] for key in expected} == expected
    assert {"seconds", "frames_per_second"} <= set(summary)
    assert "cameras guessed" in done.stderr


def test_a_reject_above_the_limit_is_exit_code_3_and_still_json(
    tmp_path: Path, molmoact: Molmoact
) -> None:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    next((dataset / "videos").rglob("*.mp4")).write_bytes(b"")
    code, out, err = molmoact(
        *("preprocess", "--dataset-path", dataset, "--output-path", tmp_path / "out"),
        *("--depth", "none", "--pointer", "none", "--json"),
    )
    assert code == 3
    assert json.loads(out)["rejected_episodes"] == 1
    assert "--max-reject-fraction" in err
    assert "Traceback" not in err


def test_a_misspelt_config_key_names_the_nearest(tmp_path: Path, molmoact: Molmoact) -> None:
    (tmp_path / "c.yaml").write_text("dataset-path: d\noutput-path: o\npoint-evry: 3\n")
    code, _, err = molmoact("preprocess", "--config", tmp_path / "c.yaml")
    assert code == 2
    assert "Did you mean 'point_every'?" in err


def test_dry_run_plans_and_writes_nothing(tmp_path: Path, molmoact: Molmoact) -> None:
    dataset = make_dataset(tmp_path / "d", lengths=(6, 5))
    code, out, err = molmoact(
        *("preprocess", "--dataset-path", dataset, "--output-path", tmp_path / "out"),
        *("--depth", "none", "--pointer", "none", "--dry-run", "--json"),
    )
    assert code == 0, err
    plan = json.loads(out)
    assert (plan["episodes"], plan["frames"], plan["shards"]) == (2, 11, 1)
    assert plan["estimated_seconds"] > 0
    assert not (tmp_path / "out").exists()


def test_demo_goes_from_episodes_to_an_answer_without_network_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the demo asked for the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    listed = (ROOT / "examples/demo_dataset/meta/episodes.jsonl").read_text().splitlines()
    episodes = [json.loads(line) for line in listed]
    demo = ("demo", "--output-path", tmp_path / "out")

    code, out, err = molmoact(*demo, "--dry-run", "--duration", 2)
    assert (code, list(tmp_path.iterdir())) == (0, []), err
    assert [piece in out for piece in ("Would write", "Would then train", "2 of 8 samples")] == [
        True
    ] * 3

    code, out, err = molmoact(*demo, "--duration", 0, "--json")  # stops after the data
    assert code == 0, err
    summary = json.loads(out)
    assert summary["episodes"] == len(episodes)
    assert summary["frames"] == sum(episode["length"] for episode in episodes)
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "out" / "run").exists()

    code, out, err = molmoact(*demo, "--duration", 2, "--resume")  # goes on from there
    assert (code, out) == (0, ""), err
    assert "finished after step 2: loss" in err
    *_, headline, after = err.splitlines()
    assert headline.startswith(
        f"asked to {episodes[0]['tasks'][0]!r}, an episode that it has not seen"
    )
    assert after.startswith("next: molmoact preview --dataset-path YOUR_DATASET")
    picture = tmp_path / "out" / "prediction" / "prediction.png"
    assert str(picture) in headline
    assert picture.read_bytes()[:4] == b"\x89PNG"
    answer = json.loads((picture.parent / "prediction.json").read_text())
    first = pq.read_table(next((tmp_path / "out/data").glob("*.parquet")), columns=["action"])
    assert answer["recorded"] == first["action"][:8].to_pylist(), (
        "episode 0, from its first frame on"
    )
    assert np.shape(answer["actions"]) == (8, 7)

    code, out, err = molmoact(
        "publish", tmp_path / "out", "--repo-id", "lab/demo", "--dry-run", "--json"
    )
    assert code == 0, err
    listed = [entry["path"] for entry in json.loads(out)["files"]]
    assert [path for path in listed if path.startswith(("run", "prediction"))] == []


def test_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"molmoact": "1.2.3"}.__getitem__)
    assert molmoact("version") == (0, "1.2.3\n", "")


def test_a_checkout_that_is_not_installed_says_so(
    monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    def not_installed(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", not_installed)
    code, out, err = molmoact("version")
    assert (code, out) == (2, "")
    assert "not installed" in err


def test_a_missing_package_is_one_line_that_names_the_extras() -> None:
    command = [
        "vqvae",
        "decode",
        "--checkpoint",
        "embedded",
        "--tokens",
        "1,2",
        "--output-path",
        "z",
    ]
    code = (
        f"import sys; sys.modules['torch'] = None; sys.argv[1:] = {command}; import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the Python package 'torch' is not installed.")
    assert "pip install 'molmoact[data]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_module_of_our_own_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, molmoact: Molmoact
) -> None:
    monkeypatch.setitem(sys.modules, "molmoact_data.validate", None)
    with pytest.raises(ModuleNotFoundError):
        molmoact("validate", "out")


def test_no_temporary_folder_at_all_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python falls back from TMPDIR to /tmp and more; only where none can be written it fails."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    message = explained(caught.value)
    assert message is not None
    assert message.startswith(f"No usable temporary directory found in ['{tmp_path}/none']: all")
    assert "TMPDIR=FOLDER" in message
    assert explained(FileNotFoundError(errno.ENOENT, "another file", "x")) is None, "a bug"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_without_a_name_may_be_the_temporary_folder(number: int) -> None:
    """What tempfile opens has no name, so nobody else can say where there is no room."""
    assert "TMPDIR=FOLDER" in str(explained(OSError(number, os.strerror(number))))
    assert "TMPDIR" not in str(explained(OSError(number, os.strerror(number), "out/shard")))
