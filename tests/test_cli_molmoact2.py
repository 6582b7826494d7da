"""Commands know a MolmoAct2 folder by its config.json: parse, validate, predict, merge-lora, export-hf."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_molmoact2 import FOLDER, THINK, TINY, arrays, needs_molmoact2
from PIL import Image

from molmoact_data.commands import what_to_train
from molmoact_data.schema import RecordLayout
from molmoact_train import commands as models
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.families.molmoact2 import prompts
from molmoact_train.families.molmoact2.family import FAMILY
from molmoact_train.families.molmoact2.fast import FAST_FOLDER, FastTokenizer
from molmoact_train.folders.adapter import Adapter
from molmoact_train.weights import WeightFiles

Molmoact = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILY.write_tiny(tmp_path_factory.mktemp("model") / "tiny")


def one_line(said: str) -> str:
    """What is said of a mistake, after the log."""
    lines = [line for line in said.strip().splitlines() if line.startswith("error")]
    assert len(lines) == 1, said
    return lines[0]


# parse


@needs_molmoact2
def test_parse_reads_its_texts(tmp_path: Path, molmoact: Molmoact) -> None:
    """Golden token ids against golden decoded chunks, un-normalised by the formula of norm_stats.json."""
    case = json.loads((FOLDER / "fast_cases.json").read_text())[0]
    codes = list(range(100))
    text = prompts.answer(depth_codes=codes, action_ids=case["token_ids"])
    texts = [
        text,
        text.replace("<action_end>", ""),
        text.replace("<depth_7>", ""),
        "<action_start><action_end>",
        "",
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    asked = ["parse", tmp_path / "t.jsonl", "--checkpoint", TINY, "--unnorm-key", "libero",
             "--action-tokenizer", FOLDER / "fast", "--json"]  # fmt: skip
    code, out, _ = molmoact(*asked)
    assert code == 0
    found = [json.loads(line) for line in out.splitlines()]
    stats = json.loads((TINY / "norm_stats.json").read_text())["metadata_by_tag"]["libero"][
        "action_stats"
    ]
    low, high, mask = (np.array(stats[name]) for name in ("q01", "q99", "mask"))
    chunk = np.clip(arrays("fast.npz")["decoded_0"], -1, 1)
    expected = np.where(mask, (chunk + 1) / 2 * (high - low) + low, chunk)
    np.testing.assert_allclose(found[0]["actions"], expected, atol=1e-5)
    assert found[0]["depth_codes"] == [codes]
    assert [entry["problems"] for entry in found] == [
        [],
        ["the action answer has no end"],
        ["99 depth codes instead of 100"],
        ["the actions are no chunk: no action token"],
        ["no actions"],
    ]
    code, _, said = molmoact(*asked, "--strict")
    assert code == 3
    assert "4 of 5 texts have problems" in said


def test_parse_asks_for_what_it_needs(tmp_path: Path, tiny: Path, molmoact: Molmoact) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": ""}\n')
    code, _, said = molmoact("parse", tmp_path / "t.jsonl")
    assert code == 2
    assert "--checkpoint" in one_line(said)
    code, _, said = molmoact("parse", tmp_path / "t.jsonl", "--checkpoint", tmp_path)
    assert code == 2
    assert "no config.json" in one_line(said)


# the way on


@needs_molmoact2
def test_the_next_question_has_what_this_model_asks_for(tiny: Path) -> None:
    """Robots and states straight from norm_stats.json."""
    for folder in (TINY, THINK, tiny):
        tags = json.loads((folder / "norm_stats.json").read_text())["metadata_by_tag"]
        words = models.ask_it(folder)
        assert ("--unnorm-key" in words) == (len(tags) > 1)
        assert ("--state" in words) == any(t.get("state_stats") for t in tags.values())
    assert {"--unnorm-key", "--state"} <= set(models.ask_it(TINY))


@pytest.mark.parametrize(
    ("layout", "family", "words"),
    [
        ({}, None, "train --stage finetune --lora --checkpoint MODEL"),
        ({"depth_buffer": True}, None, "train --family molmoact2 --stage finetune-lora --checkpoint MODEL"),
        ({"num_arms": None}, None, "train --family molmoact2 --stage finetune-lora --checkpoint MODEL"),
        ({}, "molmoact2", "train --family molmoact2 --stage finetune-lora --checkpoint m"),
        ({"depth_buffer": True}, "molmoact", "train --stage finetune --lora --checkpoint m"),
        ({"action_dim": None}, None, "vqvae train --depth-encoder depth-anything-v2"),
    ],
)  # fmt: skip
def test_what_a_valid_output_is_for(layout: dict[str, Any], family: str | None, words: str) -> None:
    columns = RecordLayout(**{"cameras": ("front",), "action_dim": 7, "state_dim": 8, **layout})
    assert (
        " ".join(map(str, what_to_train(columns, Path("m") if family else None, family))) == words
    )


# validate


def test_validate_puts_every_row_through_the_processor(
    tmp_path: Path, tiny: Path, make_output: Callable[..., Path], molmoact: Molmoact
) -> None:
    output = make_output(depth_buffer="consistent")
    code, out, _ = molmoact("validate", output, "--processor", tiny, "--json")
    assert code == 0, out
    assert json.loads(out)["samples"] == 33


def test_validate_finds_chunks_that_their_tokens_do_not_spell(
    tmp_path: Path, tiny: Path, make_output: Callable[..., Path], molmoact: Molmoact
) -> None:
    """A tokenizer fitted on a robot that stands still knows one coefficient; all others vanish."""
    shutil.copytree(tiny, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / FAST_FOLDER)
    FastTokenizer.fit([np.zeros((8, 7))]).save(tmp_path / "model" / FAST_FOLDER)
    output = make_output()
    code, out, said = molmoact("validate", output, "--processor", tmp_path / "model", "--json")
    assert code == 3
    assert json.loads(out)["findings"] == {"sample_unreadable": 33}
    assert "sample_unreadable (33)" in one_line(said)


def test_validate_refuses_what_the_expert_cannot_act(
    tiny: Path, make_output: Callable[..., Path], molmoact: Molmoact
) -> None:
    output = make_output(action_chunk_size=13)
    code, _, said = molmoact("validate", output, "--processor", tiny)
    assert code == 2
    assert "acts 13 steps ahead, this checkpoint's expert at most 12" in one_line(said)


# predict: what cannot be is one line

WRONG: list[tuple[Path, list[Any], str]] = [
    (TINY, ["--unnorm-key", "droid"], "unknown tag 'droid'"),
    (TINY, [], "knows several robots"),
    (TINY, ["--unnorm-key", "libero"], "reads the robot's state (8 numbers), and the observation has none"),
    (TINY, ["--unnorm-key", "libero", "--state", "[0.1]"], "1 numbers, but the statistics are of 8"),
    (TINY, ["--unnorm-key", "yam_dual_molmoact2", "--state", "[0.1]"], "trained on 3 cameras"),
    (TINY, ["--unnorm-key", "libero", "--think"], "not trained with depth"),
    (TINY, ["--unnorm-key", "libero", "--mode", "discrete"], "need the action tokenizer"),
    (TINY, ["--unnorm-key", "libero", "--mode", "fluent"], "fluent"),
    (TINY, ["--unnorm-key", "libero", "--trace", "[[0, 0], [9, 9]]"], "cannot be steered"),
    (TINY, ["--unnorm-key", "libero", "--num-arms", "2"], "--num-arms means nothing here"),
    (THINK, ["--unnorm-key", "libero", "--norm-stats", "OTHER"], "not statistics of MolmoAct2"),
    (THINK, ["--unnorm-key", "libero", "--norm-stats", "LONG"], "13 steps ahead, the expert at most 12"),
    (THINK, ["--unnorm-key", "libero", "--norm-stats", "WIDE"], "40 action dimensions, the expert at most 32"),
]  # fmt: skip


@needs_molmoact2
@pytest.mark.parametrize(("folder", "more", "said"), WRONG)
def test_what_cannot_be_asked_is_one_line(
    tmp_path: Path, molmoact: Molmoact, folder: Path, more: list[Any], said: str
) -> None:
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    stats = json.loads((folder / "norm_stats.json").read_text())
    (tmp_path / "OTHER").write_text('{"lab/arm": {}}')
    stats["metadata_by_tag"]["libero"]["action_horizon"] = 13
    (tmp_path / "LONG").write_text(json.dumps(stats))
    stats["metadata_by_tag"]["libero"] |= {
        "action_horizon": 10,
        "action_stats": dict.fromkeys(("min", "max", "mean", "std", "q01", "q99"), [0.0] * 40),
    }
    (tmp_path / "WIDE").write_text(json.dumps(stats))
    more = [tmp_path / m if m in ("OTHER", "LONG", "WIDE") else m for m in more]
    code, _, found = molmoact(
        "predict", "--checkpoint", folder, "--images", tmp_path / "a.png", "--images", tmp_path / "a.png",
        "--instruction", "move", "--device", "cpu", *more,
    )  # fmt: skip
    assert code == 2
    assert said in one_line(found)


@needs_molmoact2
def test_predict_thinks_and_writes_tokens(tmp_path: Path, molmoact: Molmoact) -> None:
    Image.new("RGB", (96, 96), (90, 20, 0)).save(tmp_path / "a.png")
    state = json.dumps([0.1] * 8)
    asked = ["predict", "--images", tmp_path / "a.png", "--images", tmp_path / "a.png", "--instruction", "move",
             "--device", "cpu", "--unnorm-key", "libero", "--state", state, "--json"]  # fmt: skip
    code, out, said = molmoact(*asked, "--checkpoint", THINK)
    assert code == 0, said
    assert len(json.loads(out)["depth_codes"]) == 100
    code, out, said = molmoact(*asked, "--checkpoint", THINK, "--no-think")
    assert code == 0, said
    assert json.loads(out)["depth_codes"] is None
    tokens = ["--mode", "discrete", "--action-tokenizer", FOLDER / "fast"]
    code, out, said = molmoact(*asked, "--checkpoint", TINY, *tokens)
    assert code == 0, said
    assert json.loads(out)["text"].startswith("<action_start><action_")


# train: data that are not of the checkpoint's robot


@needs_molmoact2
@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({"state_dim": 5}, "this is another robot"),
        ({"state_dim": 8, "action_dim": 6}, "this is another robot"),
        ({"state_dim": 8, "cameras": ("front",)}, "is of 2 cameras"),
        ({"state_dim": 8, "chunk_size": 5}, "acts 10 steps ahead, the data 'd' hold chunks of 5"),
    ],
)
def test_data_of_another_robot_are_refused(
    tmp_path: Path, molmoact: Molmoact, dataset: dict[str, Any], said: str
) -> None:
    data = write_debug_dataset(
        tmp_path / "data", name="d", frames=12, **{"chunk_size": 10, **dataset}
    )
    code, _, found = molmoact(
        "train", "--family", "molmoact2", "--stage", "debug", "--checkpoint", TINY, "--data", data,
        "--tags", "d=libero", "--action-mode", "continuous", "--output-path", tmp_path / "run", "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    assert said in one_line(found)


# merge-lora


def test_merge_lora_is_verified_within_its_limit(
    tmp_path: Path, tiny: Path, molmoact: Molmoact, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_debug_dataset(tmp_path / "data")
    made = ["--family", "molmoact2", "--stage", "debug", "--checkpoint", tiny, "--data", data, "--lora",
            "--lora-rank", 4, "--duration", 2, "--output-path", tmp_path / "run", "--device", "cpu"]  # fmt: skip
    assert molmoact("train", *made)[0] == 0
    merge = ["merge-lora", "--adapter", tmp_path / "run" / "final", "--verify", "--json"]
    code, out, said = molmoact(*merge, "--output-path", tmp_path / "merged")
    assert code == 0, said
    assert json.loads(out)["logit_difference"] < 1e-5
    files = WeightFiles(tmp_path / "merged")
    assert files.names() == WeightFiles(tiny).names()
    assert all(torch.isfinite(files.read(name)).all() for name in files.names())
    right = Adapter.delta
    monkeypatch.setattr(Adapter, "delta", lambda self, name: 200 * right(self, name))
    code, _, said = molmoact(*merge, "--output-path", tmp_path / "wrong")
    assert code == 2
    assert "nothing was written" in one_line(said)
    assert not (tmp_path / "wrong").exists()


# export-hf


@needs_molmoact2
def test_export_to_lerobots_layout_by_flag(tmp_path: Path, molmoact: Molmoact) -> None:
    to = [
        "export-hf",
        "--checkpoint",
        TINY,
        "--layout",
        "lerobot",
        "--output-path",
        tmp_path / "out",
    ]
    code, _, said = molmoact(*to)
    assert code == 2
    assert "knows several robots" in one_line(said)
    assert molmoact(*to, "--unnorm-key", "libero", "--dry-run")[0] == 0
    assert not (tmp_path / "out").exists()
    code, _, said = molmoact(*to, "--unnorm-key", "libero")
    assert code == 0, said
    assert f"next: lerobot-eval --policy.path={tmp_path / 'out'} --env.type=ENV" in said
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (settings["type"], settings["norm_tag"], settings["chunk_size"]) == (
        "molmoact2",
        "libero",
        10,
    )
    back = ["export-hf", "--checkpoint", tmp_path / "out", "--output-path", tmp_path / "back"]
    assert molmoact(*back)[0] == 0
    first, again = WeightFiles(TINY), WeightFiles(tmp_path / "back")
    assert all(torch.equal(first.read(name), again.read(name)) for name in first.names())
    back = ["export-hf", "--checkpoint", tmp_path / "out", "--output-path", tmp_path / "x"]
    code, _, said = molmoact(*back, "--layout", "lerobot")
    assert code == 2
    assert "in LeRobot's layout already" in one_line(said)
