"""The life of a dataset and of a model by commands, read as the person in front of the terminal reads it.

Every command that is named by a line `next:` is typed as that line says, with its capitals filled in.
"""

from __future__ import annotations

import ast
import logging
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import pytest
from made_commands import Molmoact
from made_gl import needs_gl
from PIL import Image

import cli

DEMO = Path(__file__).parents[1] / "examples" / "demo_dataset"
TWO_STEPS = (
    *("--stage", "tabletop", "--duration", "2", "--warmup", "0", "--log-interval", "1"),
    *("--global-batch-size", "2", "--device-batch-size", "2", "--device", "cpu"),
)
ENDLESS_OR_PLAIN = {"version", "serve", "portal"}
"""Commands without a result: two run until they are told, one prints a single word."""

Read = tuple[str, str, list[str]]
"""What a command told: stdout, stderr, and the words of its line `next:` (none where it has no such line)."""
Type = Callable[..., Read]


@pytest.fixture
def typed(molmoact: Molmoact, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Type a command at a terminal; it ends well."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")

    def call(*words: object) -> Read:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        log = logging.StreamHandler()  # pytest's own handlers keep the program from adding it
        monkeypatch.setattr(logging.root, "handlers", [log])
        code, out, err = molmoact(*words)
        out, err = click.unstyle(out), re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", err)
        assert code == 0, err
        assert "Traceback" not in err
        found = [shlex.split(line[6:]) for line in err.splitlines() if line.startswith("next: ")]
        assert len(found) <= 1, "one way on, not several"
        if found:
            assert found[0][0] == "molmoact"
            assert err.splitlines()[-1].startswith("next: "), "the way on is the last line"
        return out, err, found[0][1:] if found else []

    return call


def filled(words: list[str], names: Mapping[str, object]) -> list[str]:
    """The words of a line `next:` with what only the person knows; every name must be there to be filled."""
    assert [name for name in names if name not in words] == []
    return [str(names.get(word, word)) for word in words]


def headline(err: str) -> str:
    """The last line before the way on."""
    return [line for line in err.splitlines() if line and not line.startswith("next: ")][-1]


def test_from_a_dataset_to_a_model_that_answers_and_a_dataset_to_publish(
    typed: Type, tmp_path: Path
) -> None:
    labels, chunks = str(tmp_path / "labels"), str(tmp_path / "chunks of four")
    run, model = tmp_path / "run", tmp_path / "model"
    look = ("preprocess", "--dataset-path", DEMO, "--preset", "embedded", "--episodes", "0,1")

    out, err, after = typed(*look, "--output-path", labels, "--dry-run")
    rows = [line.split()[0] for line in out.splitlines()[1:] if re.match(r"  \w", line)]
    assert out.startswith(f"Would write {labels}")
    assert {"frames", "teachers", "downloads", "time", "disk", "memory"} <= set(rows)
    assert not Path(labels).exists()

    out, err, after = typed(*look, "--output-path", labels)
    assert out == ""
    assert "69/69 frames ━" in err, "a bar"
    assert "which the released models take for" in err, "the table of the gripper"
    assert headline(err) == f"69 frames of 2 episodes in 1 shard; look at {labels}/report.html"
    assert Path(labels, "report.html").is_file()
    assert after == ["validate", labels]

    out, err, after = typed(*after)
    assert f"{labels} is valid" in out
    assert re.search(r"^  images +138 *$", out, re.M), "a table"
    assert headline(err) == "69 rows without a problem"
    assert after[:1] == ["train"]
    assert labels in after

    out, err, after = typed(
        "retokenize", labels, "--action-chunk-size", "4", "--output-path", chunks
    )
    assert headline(err) == f"69 frames in {chunks}"
    assert after == ["validate", chunks], "a path with spaces is one word"

    _, _, after = typed(*after)
    train = filled(after, {"MODEL": "embedded", "RUN": run})
    assert train[:1] == ["train"]

    out, err, after = typed(*train, *TWO_STEPS)
    assert re.search(r"2/2 ━+ loss \d", err), "a bar"
    assert "the first step follows" in err
    assert re.match(r"finished after step 2: loss [\d.]+, accuracy [\d.]+; see ", headline(err))
    assert Path(headline(err).rpartition("see ")[2]).is_file()
    assert after[:1] == ["merge-lora"]

    out, err, after = typed(*filled(after, {"MODEL": model}))
    assert re.search(rf"{model}: \d+ of \d+ tensors changed by up to ", headline(err))
    assert after[:1] == ["predict"]

    picture = tmp_path / "picture.png"
    Image.new("RGB", (128, 128), (90, 80, 70)).save(picture)
    known = {"PICTURE": picture, "WORDS": "pick up the red can", "KEY": "demo_dataset"}
    out, err, _ = typed(*filled(after, known), "--constrained")
    assert out.startswith("depth codes: ")
    assert re.fullmatch(r"4 actions, \d+ tokens", headline(err))

    ask = ("predict", "--checkpoint", model, "--data", chunks, "--unnorm-key", "demo_dataset")
    out, err, after = typed(*ask, "--episodes", "0", "--every", "28", "--constrained")
    assert "episode 0: " in err, "a line for every episode"
    assert re.search(r"^  dimension +spread +error ", out, re.M), "a table"
    assert "of 1 episodes; actions off by" in headline(err)
    assert after == ["serve", "--checkpoint", str(model), "--unnorm-key", "demo_dataset"]

    out, err, after = typed(
        "export-hf", "--checkpoint", model, "--output-path", tmp_path / "exported"
    )
    assert re.search(r"exported: \d+ tensors, ", headline(err))
    assert after[:3] == ["predict", "--checkpoint", str(tmp_path / "exported")]
    assert after[-2:] == ["--unnorm-key", "KEY"]

    publish = ["publish", chunks, "--repo-id", "lab/walk"]
    out, err, after = typed(*publish, "--dry-run")
    assert out.startswith("Would publish lab/walk")
    assert {"README.md", "manifest.json", "report.html"} <= set(out.split())
    assert headline(err).endswith("; nothing was uploaded")
    assert after == publish


@needs_gl
def test_eval_tells_every_episode_the_rates_and_how_to_serve(typed: Type, tmp_path: Path) -> None:
    asked = ("--checkpoint", "embedded", "--unnorm-key", "tabletop")
    out, err, after = typed(
        *("eval", "--env", "tabletop", *asked, "--tasks", "pick", "--trials", "1"),
        *("--max-steps", "4", "--no-video", "--output-path", tmp_path / "pick"),
    )
    assert "1/1 pick-000" in err, "a line for every episode"
    assert re.search(r"^pick +0 of 1 ", out, re.M), "a table"
    assert headline(err) == f"0 of 1 episodes succeeded; see {tmp_path / 'pick' / 'eval.html'}"
    assert after == ["serve", *asked]


def concludes(source: str, name: str) -> bool:
    """Whether the function `name` calls `conclude`, itself or through functions of its own module."""
    functions = {f.name: f for f in ast.parse(source).body if isinstance(f, ast.FunctionDef)}
    waiting, seen = [name], set()
    while waiting:
        here = waiting.pop()
        seen.add(here)
        called = {
            call.func.id
            for call in ast.walk(functions[here])
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        }
        if "conclude" in called:
            return True
        waiting += [other for other in called & set(functions) if other not in seen]
    return False


def test_every_command_with_a_result_ends_with_a_headline() -> None:
    found = [f for group in cli.COMMANDS.values() for f in group] + [*cli.VQVAE_COMMANDS.values()]
    silent = set()
    for function in found:
        source = Path(str(sys.modules[function.__module__].__file__)).read_text()
        if not concludes(source, function.__name__):
            silent.add(function.__name__)
    assert silent == ENDLESS_OR_PLAIN


def test_a_command_that_does_not_conclude_is_found() -> None:
    assert concludes("def a(): b()\ndef b(): conclude('x')", "a")
    assert not concludes("def a(): b()\ndef b(): say('x')\ndef c(): conclude('x')", "a")
