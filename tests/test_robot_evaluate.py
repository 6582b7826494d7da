"""`molmoact eval`: the interface that others rely on, killed and resumed, in several processes, and its limits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import av
import pytest
from made_gl import needs_gl

from molmoact_data import policies
from molmoact_data.errors import UserError
from molmoact_robot.evaluation.evaluate import EvalConfig, evaluate
from molmoact_robot.evaluation.player import PlayerConfig
from molmoact_robot.evaluation.workers import Workers
from molmoact_robot.rollout import Trial

ROOT = Path(__file__).resolve().parent.parent
LINE = "made_worlds:LineEnv"


@pytest.fixture
def walker(tmp_path, monkeypatch):
    """A function that writes a checkpoint whose policy walks: `walker(gripper=1.0, stumbles=[4])`."""
    monkeypatch.setitem(policies.POLICIES, "walker", "made_worlds:WalkerPolicy")

    def make(name="walker", gripper=1.0, **more) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        config = {"model_type": "walker", "name": name, "gripper": gripper, **more}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return str(tmp_path / name)

    return make


def config(checkpoint, **more) -> EvalConfig:
    video = more.pop("video", False)
    given = {"tasks": ("open", "closed"), "trials": 3, **more}
    return EvalConfig(player=PlayerConfig(env=LINE, checkpoint=checkpoint, video=video), **given)


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


# --- the interface --------------------------------------------------------------------------------


@needs_gl
def test_the_command_leaves_what_others_rely_on(molmoact, tmp_path) -> None:
    """The issue's own command line, with the expert for the model, at a size for a test."""
    code, out, err = molmoact(
        "eval", "--env", "tabletop", "--checkpoint", "expert", "--tasks", "pick", "--trials", 2,
        "--seed", 771100, "--output-path", tmp_path / "d", "--json",
        "--env-arg", "image-size=64", "--env-arg", "quality=flat",
    )  # fmt: skip
    assert code == 0, err
    results = json.loads((tmp_path / "d/results.json").read_text())
    assert json.loads(out) == results
    assert (results["n"], results["successes"]) == (2, 2)
    low, high = results["interval"]
    assert 0.3 < low < high == 1.0
    assert results["per_task"]["pick"]["n"] == 2
    assert set(results["failures"].values()) == {0}
    assert [t["seed"] for t in results["trials"]] == [771100, 771101]
    assert results["settings"]["player"]["env"] == "tabletop"
    assert results["environment"]["settings"]["split"] == "test"
    assert results["environment"]["versions"]["mujoco"]
    films = sorted((tmp_path / "d/episodes").glob("*.mp4"))
    assert [f.name for f in films] == ["pick-000.mp4", "pick-001.mp4"]
    with av.open(str(films[0])) as film:
        assert sum(1 for _ in film.decode(video=0)) == results["trials"][0]["steps"] + 1
    page = (tmp_path / "d/eval.html").read_text()
    assert "episodes/pick-001.mp4" in page
    assert "2 of 2  (34\N{NO-BREAK SPACE}% to 100\N{NO-BREAK SPACE}%)" in page
    assert "http" not in page.replace("http://www.w3.org", ""), "nothing from outside"


def test_rates_failures_and_reasons_are_counted(walker, tmp_path) -> None:
    results = evaluate(config(walker(stumbles=[4]), max_failed_predictions=0.5), tmp_path / "d")
    assert {t: (r["successes"], r["n"]) for t, r in results["per_task"].items()} == {
        "open": (3, 3), "closed": (0, 3),
    }  # fmt: skip
    assert results["failures"]["timeout"] == 3
    assert results["predictions"]["by_reason"] == {"bad_text": 6}
    assert results["policy"]["checkpoint"] == "walker"


def test_words_from_a_dataset_or_an_error_are_text_on_the_page(walker, tmp_path) -> None:
    evaluate(config(walker(name="<b>bold")), tmp_path / "d")
    page = (tmp_path / "d/eval.html").read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-success", 0.9], "3 of 6 trials succeeded, below --min-success 0.9"),
        (["--max-failed-predictions", 0.2], "6 of 23 answers were no actions ({'bad_text': 6})"),
    ],
)
def test_a_limit_that_is_exceeded_is_exit_code_3_after_the_result(
    molmoact, walker, tmp_path, flags, message
) -> None:
    always = ["--max-failed-predictions", 0.5, *flags]
    code, _, err = molmoact(
        "eval", "--env", LINE, "--checkpoint", walker(stumbles=[4]), "--tasks", "open,closed",
        "--trials", 3, "--no-video", "--output-path", tmp_path / "d", *always,
    )  # fmt: skip
    assert code == 3
    assert message in err
    assert (tmp_path / "d/results.json").is_file()


def test_a_broken_environment_fails_the_run_and_is_played_again(walker, tmp_path, molmoact) -> None:
    arguments = (
        "eval", "--env", LINE, "--checkpoint", walker(), "--tasks", "open,broken", "--trials", 2,
        "--no-video", "--output-path", tmp_path / "d",
    )  # fmt: skip
    code, _, err = molmoact(*arguments)
    assert code == 3
    assert "2 of 4 trials ended because the environment broke" in err
    code, _, err = molmoact(*arguments, "--resume")
    assert code == 3
    assert "3/4 broken-000" in err, "both were played again, the two others were not"
    assert not re.search(r"\bopen\b", err.partition("error:")[0])


# --- killed and resumed ---------------------------------------------------------------------------


def test_killed_and_resumed_leaves_the_files_of_a_run_that_was_not(walker, tmp_path) -> None:
    """SIGKILL while it plays; the rest is played once, and every file is the same."""
    checkpoint, steps = walker(), 40
    arguments = [
        "--env", LINE, "--checkpoint", checkpoint, "--tasks", "open,closed", "--trials", str(steps),
    ]  # fmt: skip
    program = (
        "import sys, cli; from molmoact_data import policies; "
        "policies.POLICIES['walker'] = 'made_worlds:WalkerPolicy'; "
        "sys.argv[0] = 'molmoact'; cli.main()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}

    def start(folder, *more):
        command = [
            sys.executable,
            "-c",
            program,
            "eval",
            *arguments,
            "--output-path",
            str(folder),
            *more,
        ]
        return subprocess.Popen(
            command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )

    killed = start(tmp_path / "killed")
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith("7/"):
            killed.send_signal(signal.SIGKILL)
            break
    killed.wait()
    # A trial that was being written has a hidden name and does not count.
    before = {n for n in files(tmp_path / "killed") if re.match(r"trials/[^.]", n)}
    assert 7 <= len(before) < 2 * steps
    assert not (tmp_path / "killed/results.json").exists()
    resumed = start(tmp_path / "killed", "--resume")
    _, err = resumed.communicate()
    assert resumed.returncode == 0, err
    assert err.count(", seed ") == 2 * steps - len(before), "no trial twice, none lost"
    whole = start(tmp_path / "whole")
    whole.communicate()
    assert whole.returncode == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_other_settings_are_not_resumed(walker, tmp_path, molmoact) -> None:
    arguments = (
        "eval", "--env", LINE, "--checkpoint", walker(), "--tasks", "open", "--trials", 2,
        "--no-video", "--output-path", tmp_path / "d",
    )  # fmt: skip
    assert molmoact(*arguments)[0] == 0
    code, _, err = molmoact(*arguments, "--resume", "--execute", 2)
    assert code == 2
    assert "settings.player.rollout.execute: None there, 2 now" in err
    code, _, err = molmoact(*arguments)
    assert code == 2
    assert "not empty" in err
    assert molmoact(*arguments, "--resume")[0] == 0
    assert molmoact(*arguments, "--overwrite", "--execute", 2)[0] == 0


def test_a_spoiled_trial_file_is_named(walker, tmp_path, molmoact) -> None:
    arguments = (
        "eval", "--env", LINE, "--checkpoint", walker(), "--tasks", "open", "--trials", 1,
        "--no-video", "--output-path", tmp_path / "d",
    )  # fmt: skip
    assert molmoact(*arguments)[0] == 0
    (tmp_path / "d/trials/open-000.json").write_text('{"task": "open"}')
    code, _, err = molmoact(*arguments, "--resume")
    assert code == 2
    assert "open-000.json is not the result of a trial" in err


# --- several processes ----------------------------------------------------------------------------


@needs_gl
def test_two_processes_give_the_files_of_one(tmp_path) -> None:
    player = PlayerConfig(
        env="tabletop", checkpoint="expert", env_settings={"image_size": 64, "quality": "flat"}
    )
    for jobs in (1, 2):
        settings = EvalConfig(player=player, tasks=("pick",), trials=3, seed=5, jobs=jobs)
        evaluate(settings, tmp_path / str(jobs))
    assert files(tmp_path / "1") == files(tmp_path / "2")
    evaluate(settings, tmp_path / "1", resume=True)
    assert files(tmp_path / "1") == files(tmp_path / "2"), "resumed with another number of jobs"


def test_a_worker_that_cannot_play_says_so_in_one_line(tmp_path) -> None:
    player = PlayerConfig(env="tabletop", checkpoint=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a model folder"):
        Workers(player, tmp_path, 1).__enter__()


def test_a_worker_that_dies_names_its_trial(tmp_path) -> None:
    player = PlayerConfig(env="tabletop", checkpoint="expert")
    with pytest.raises(RuntimeError, match="exit code 1 while it was started"):
        Workers(player, tmp_path, 1, python="/bin/false").__enter__()
    with Workers(player, tmp_path, 1) as workers:
        workers._processes[0].kill()
        with pytest.raises(RuntimeError, match="exit code -9 while it played pick-000"):
            list(workers.play([Trial("pick", 0, 0)]))


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint", "/nowhere"], "/nowhere is not a model folder"),
        (["--tasks", "opne"], "Did you mean 'open'"),
        (["--execute", 0], "execute must be at least 1"),
        (["--steer", "expret"], "Did you mean 'expert'"),
        (["--trials", 0], "at least 1"),
        (["--min-success", 70], "share, 0..1"),
    ],
)
def test_a_mistake_is_one_line(molmoact, walker, tmp_path, flags, message) -> None:
    code, _, err = molmoact(
        "eval", "--env", LINE, "--checkpoint", walker(), "--output-path", tmp_path / "d", *flags
    )
    assert code == 2
    assert message in err
    assert not (tmp_path / "d").exists()


def test_a_wrong_checkpoint_is_told_before_torch_or_mujoco_is_imported(tmp_path) -> None:
    program = (
        "import sys, cli\n"
        "sys.argv = ['molmoact', 'eval', '--checkpoint', '/nowhere', '--output-path', '/nowhere/d']\n"
        "try:\n    cli.main()\n"
        "finally:\n    print(sorted({'torch', 'mujoco'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]"
    assert "not a model folder" in done.stderr


def test_a_model_for_another_robot_is_refused_before_it_moves(walker, tmp_path, molmoact) -> None:
    code, _, err = molmoact(
        "eval", "--env", "tabletop", "--checkpoint", walker(), "--output-path", tmp_path / "d"
    )
    assert code == 2
    assert "actions have 2 values (statistics 'made') and the environment takes 7" in err
