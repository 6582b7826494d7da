"""`molmoact train` through the door: what reaches the loop, the dry run, and a user's mistakes."""

from __future__ import annotations

import inspect
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from molmoact_data.errors import UserError
from molmoact_train import train as loop
from molmoact_train.config import TrainConfig
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, write_tiny_checkpoint

SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
RUNNER = CliRunner()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    write_tiny_checkpoint(folder / "checkpoint", SIZE)
    write_debug_dataset(folder / "data", episodes=3, frames=4, size=56, chunk_size=2)
    return folder


def command(base: Path, *more: str) -> list[str]:
    return [
        "train", "--stage", "debug", "--checkpoint", str(base / "checkpoint"),
        "--data", str(base / "data"), "--output-path", str(base / "run"), *more,
    ]  # fmt: skip


def test_flags_beat_yaml_and_yaml_beats_the_preset(
    base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, object] = {}

    def fake(config: TrainConfig, **options: object) -> loop.Outcome:
        seen.update(options, config=config)
        return loop.Outcome(6, finished=True, folder=Path("run/final"))

    monkeypatch.setattr(loop, "train", fake)
    (tmp_path / "c.yaml").write_text("lr-llm: 3e-5\nseq_len: 900\nimg-aug: true\n")
    flags = ["--config", str(tmp_path / "c.yaml"), "--seq-len", "1000", "--lora", "--overwrite"]
    result = RUNNER.invoke(cli.app, command(base, *flags, "--lora-rank", "8", "--json"))
    assert result.exit_code == 0, result.output
    config = seen["config"]
    assert isinstance(config, TrainConfig)
    assert (config.settings.lr_llm, config.seq_len, config.img_aug) == (3e-5, 1000, True)
    assert (config.lora, config.lora_rank, config.settings.ft_embedding) == (True, 8, None)
    assert (seen["overwrite"], seen["resume"], seen["device"]) == (True, False, "auto")
    assert json.loads(result.stdout)["finished"] is True


def test_dry_run_says_what_would_happen_and_writes_nothing(base: Path) -> None:
    result = RUNNER.invoke(cli.app, command(base, "--dry-run", "--json", "--device", "cpu"))
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["steps"], plan["processes"], plan["passes_per_step"]) == (6, 1, 2)
    assert plan["tokens_per_step"] == pytest.approx(4 * plan["tokens"]["mean_tokens"])
    assert {g: trained == total for g, (trained, total) in plan["parameters"].items()} == {
        "llm": True, "connector": True, "vit": True,
    }  # fmt: skip
    assert plan["memory_gib_per_process"]["total"] > 0
    assert plan["h100_hours"] > 0
    assert plan["sample"]["question"].startswith("The task is move the square.")
    assert not (base / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stage", "finetun"], "unknown stage 'finetun'. Did you mean 'finetune'"),
        (["--data", "/nowhere"], "no such folder"),
        (["--lora", "--ft-embedding", "all"], "no effect with LoRA"),
        (["--resume", "--overwrite"], "one of them"),
        (["--checkpoint", "/no/such/dir"], "not a Hub id"),
    ],
)
def test_mistakes_are_explained(base: Path, flags: list[str], message: str) -> None:
    result = RUNNER.invoke(cli.app, command(base, "--device", "cpu", *flags))
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_an_unknown_key_in_the_yaml_names_the_nearest(base: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sav_interval: 3\n")
    result = RUNNER.invoke(cli.app, command(base, "--config", str(tmp_path / "c.yaml")))
    assert "Did you mean 'save_interval'" in str(result.exception)


@pytest.mark.parametrize(("number", "word"), [(2, "interrupted"), (15, "terminated")])
def test_a_signal_saves_says_how_to_go_on_and_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    number: int, word: str,
) -> None:  # fmt: skip
    """`train && merge-lora` must not go on after Ctrl-C; `train --resume` must."""
    from molmoact_train import train as loop

    real = loop.train_step

    def stopped(*args: object, **kwargs: object) -> dict[str, float]:
        if args[6] == 2:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    words = command(base, "--device", "cpu", "--output-path", str(tmp_path / "run"))
    monkeypatch.setattr(loop, "train_step", stopped)
    monkeypatch.setattr("sys.argv", ["molmoact", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert ended.value.code == 128 + number
    assert "stopped after step 2" in told.out + told.err
    assert word in told.err
    assert "--resume goes on" in told.err
    assert not (tmp_path / "run" / "final").exists()
    monkeypatch.setattr(loop, "train_step", real)
    assert RUNNER.invoke(cli.app, [*words, "--resume"]).exit_code == 0
    assert (tmp_path / "run" / "final").is_dir()


def test_the_stage_may_stand_in_the_yaml(base: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("stage: debug\nduration: 9\n")
    words = [w for w in command(base) if w not in ("--stage", "debug")]
    given = [*words, "--config", str(tmp_path / "c.yaml"), "--device", "cpu", "--dry-run", "--json"]
    result = RUNNER.invoke(cli.app, given)
    assert (result.exit_code, json.loads(result.stdout)["steps"]) == (0, 9), result.output
    assert "--stage is missing" in str(RUNNER.invoke(cli.app, words).exception)


def test_every_field_of_a_run_is_a_flag_and_nothing_is_spelled_twice() -> None:
    from dataclasses import fields

    from molmoact_train.commands import train
    from molmoact_train.config import TrainConfig
    from molmoact_train.families import registry

    wanted = {f.name for f in fields(TrainConfig)} - {"settings"}
    for name in registry.FAMILIES:
        wanted |= {f.name for f in fields(registry.settings_class(name))}
    flags = set(inspect.signature(train).parameters)
    assert wanted <= flags
    assert flags - wanted == {"device", "config", "resume", "overwrite", "dry_run", "as_json"}


def test_help_names_every_stage() -> None:
    result = RUNNER.invoke(cli.app, ["train", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    for flag in (
        "--lr-connector",
        "--lora-alpha",
        "--img-aug",
        "--dry-run",
        "--resume",
        "--norm-stats",
    ):
        assert flag in result.output


def test_debug_trains_resumes_exports_and_predicts(base: Path, tmp_path: Path) -> None:
    """The whole way on a CPU, by commands alone."""
    run = tmp_path / "run"
    start = [
        "train", "--stage", "debug", "--checkpoint", str(base / "checkpoint"), "--data",
        str(base / "data"), "--output-path", str(run), "--device", "cpu", "--eval-fraction", "0.3",
    ]  # fmt: skip
    first = RUNNER.invoke(cli.app, start)
    assert first.exit_code == 0, first.output
    refused = RUNNER.invoke(cli.app, start)
    assert "--resume" in str(refused.exception)
    again = RUNNER.invoke(cli.app, [*start, "--resume", "--json"])
    assert again.exit_code == 0, again.output
    from PIL import Image

    Image.new("RGB", (56, 56), (90, 30, 30)).save(tmp_path / "a.png")
    exported = ["export-hf", "--checkpoint", str(run / "step00000006")]
    result = RUNNER.invoke(cli.app, [*exported, "--output-path", str(tmp_path / "hf")])
    assert result.exit_code == 0, result.output
    for folder in (run / "final", tmp_path / "hf"):
        predict = [
            "predict", "--checkpoint", str(folder), "--images", str(tmp_path / "a.png"),
            "--instruction", "move the square", "--action-chunk-size", "2", "--json",
        ]  # fmt: skip
        result = RUNNER.invoke(cli.app, predict)
        assert result.exit_code == 0, (result.output, result.exception)
        answer = json.loads(result.stdout)
        assert len(answer["depth_codes"][0]) == 100
        assert [len(step) for step in answer["actions"]] == [7, 7]
