"""MolmoAct2 trains: samples and packed rows as in the original, a batch by heart, runs that resume exactly."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_molmoact2 import FOLDER, TINY, arrays, fresh, needs_molmoact2, tensors, windows
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.policies import Observation
from molmoact_train.config import TrainConfig, resolve
from molmoact_train.data.sources import ShardSource, SourceOptions
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.families.molmoact.network.attention import (
    positions_from_documents,
)
from molmoact_train.families.molmoact2 import prompts, samples
from molmoact_train.families.molmoact2.family import FAMILY
from molmoact_train.families.molmoact2.fast import FastTokenizer
from molmoact_train.families.molmoact2.images import CutImages
from molmoact_train.families.molmoact2.policy import MolmoAct2Policy
from molmoact_train.families.molmoact2.processor import MolmoAct2Processor
from molmoact_train.families.molmoact2.samples import Chunk, MolmoAct2Sample, collate, loss_weights
from molmoact_train.folders.merge import merge_lora
from molmoact_train.optim import clip_by_group, trained_parameters
from molmoact_train.train import train
from molmoact_train.weights import WeightFiles

# Samples


def golden_samples(draws: int = 2) -> list[MolmoAct2Sample]:
    """The two examples of the golden batch, unpadded, with the golden noise."""
    given, drawn = tensors("training_sample.npz"), tensors("loss.npz")
    places = windows(given["both_image_token_pooling"], 4).view(2, -1, 4)
    found = []
    for row in range(2):
        real = given["both_attention_mask"][row].bool()
        ids = given["both_input_ids"][row][real].numpy()
        own = places[row] - 2 * row * 25
        first = int((given["both_labels"][row][real] != -100).nonzero()[0])
        found.append(
            MolmoAct2Sample(
                position=row,
                style="robot_action",
                input_tokens=ids,
                target_tokens=np.roll(ids, -1),
                loss_weights=loss_weights(ids, first),
                crops_UPC=given["pixel_values_u8"][2 * row : 2 * row + 2].numpy(),
                windows_V4=torch.where(places[row] >= 0, own, -1).numpy(),
                chunk=Chunk(
                    given["both_action"][row].numpy(),
                    drawn["noise"][row, :draws].numpy(),
                    drawn["timesteps"][row, :draws].numpy(),
                    ~given["both_action_horizon_is_pad"][row].numpy(),
                    ~given["both_action_dim_is_pad"][row].numpy(),
                ),
            )
        )
    return found


@needs_molmoact2
def test_a_training_sample_equals_the_original() -> None:
    golden = arrays("training_sample.npz")
    told = json.loads((FOLDER / "training_sample.json").read_text())
    processor = MolmoAct2Processor.from_folder(TINY)
    fast = FastTokenizer.from_folder(FOLDER / "fast")
    tag = processor.stats.tag("libero")
    for row, task in enumerate(told["tasks"]):
        bins = prompts.state_bins(golden["state_normalised"][row])
        text = processor.prompt_text("robot_action", task, tag, bins.tolist(), 2)
        action_ids = fast.encode(golden["actions_normalised"][row])
        assert action_ids == told["answer_token_ids"][row]
        block = ("<im_start>", *["<im_patch>"] * 9, "<im_end>")
        pictures = CutImages(
            np.zeros((2, 25, 588), np.uint8), np.zeros((18, 4), np.int64), (block,) * 2
        )
        asked = processor.ids_of(text, pictures)
        answer = processor.encode(prompts.answer(depth_codes=None, action_ids=action_ids))
        ids = [*asked, *answer, processor.config.eos_id]
        real = golden["both_attention_mask"][row].astype(bool)
        assert ids == golden["both_input_ids"][row][real].tolist()
        continuous = golden["continuous_attention_mask"][row].astype(bool)
        assert asked == golden["continuous_input_ids"][row][continuous].tolist()
        labels = golden["both_labels"][row][real]
        weights = loss_weights(np.array(ids), len(asked))
        np.testing.assert_array_equal(weights[:-1] > 0, labels[1:] != -100)
        assert weights.max() == pytest.approx(2 / np.sqrt((labels != -100).sum()))


@needs_molmoact2
def test_a_think_sample_equals_the_original() -> None:
    golden = arrays("think.npz")
    text = json.loads((FOLDER / "think.json").read_text())["training_text"]
    codes = golden["training_codes"].tolist()
    ids = [
        int(part.split(">")[0]) for part in text.split("<action_start>")[1].split("<action_")[1:-1]
    ]
    assert text.endswith(prompts.answer(depth_codes=codes, action_ids=ids) + prompts.TURN_END)


# Packing


@needs_molmoact2
def test_a_packed_row_equals_the_original() -> None:
    golden = arrays("packing.npz")
    given = []
    for number in range(3):
        part = {k.split("_", 2)[2]: v for k, v in golden.items() if k.startswith(f"in_{number}_")}
        steps = np.zeros(12, bool)
        chunk = Chunk(
            np.zeros((12, 32), np.float32), np.zeros((1, 12, 32), np.float32), np.zeros(1, np.float32), steps,
            np.zeros(32, bool),
        )  # fmt: skip
        if "actions" in part:
            chunk = dataclasses.replace(
                chunk, actions_TA=part["actions"], steps_T=~part["action_horizon_is_pad"],
                dims_A=~part["action_dim_is_pad"],
            )  # fmt: skip
        given.append(
            MolmoAct2Sample(
                number, "robot_action", part["input_tokens"], part["target_tokens"], part["loss_masks"],
                part["images"], part["token_pooling"], chunk,
            )
        )  # fmt: skip
    for name in ("input_tokens", "target_tokens"):
        np.testing.assert_array_equal(samples._joined(given, name), golden[f"packed_{name}"])
    found = samples._joined(given, "loss_weights")
    np.testing.assert_array_equal(found, golden["packed_loss_masks"])
    np.testing.assert_array_equal(samples._shifted_windows(given), golden["packed_token_pooling"])
    documents = samples._documents(given)
    np.testing.assert_array_equal(documents * 100_000, golden["packed_subsegment_ids"])
    counted = positions_from_documents(torch.from_numpy(documents)[None])[0]
    np.testing.assert_array_equal(counted, golden["packed_position_ids"])
    owners = [[n for n, sample in enumerate(given) if sample.has_chunk]]
    chunks = samples._chunks([given], owners)
    np.testing.assert_array_equal(chunks.actions_BETA[0], golden["packed_actions"])
    np.testing.assert_array_equal(~chunks.steps_BET[0], golden["packed_action_horizon_is_pad"])
    np.testing.assert_array_equal(~chunks.dims_BEA[0], golden["packed_action_dim_is_pad"])
    np.testing.assert_array_equal(chunks.documents_BE[0], golden["packed_example_ids"])


@needs_molmoact2
@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_losses_and_gradients_of_a_packed_row_are_those_of_its_examples(attention: str) -> None:
    """Both examples in one row, in two padded rows, and one of them without a chunk."""
    first, second = golden_samples()
    silent = dataclasses.replace(second, chunk=second.chunk.nothing())
    for given in ([first, second], [first, silent]):
        results = []
        for seq_len in (None, 400):
            model = fresh(TINY).train()
            model.model.image_attention = attention
            batch = collate(given, seq_len=seq_len, text_first=True)
            assert batch.weights["chunks"] == sum(s.has_chunk for s in given)
            out = model(**batch.inputs, chunks=batch.chunks)
            out.loss.backward()
            gradient = torch.cat(
                [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            )
            results.append((out.loss.detach(), out.text.cross_entropy, gradient, batch))
        (
            (loss, entropy, gradient, padded),
            (packed_loss, packed_entropy, packed_gradient, packed),
        ) = results
        assert packed.num_padded == packed.num_tokens < padded.num_padded
        torch.testing.assert_close(packed_loss, loss, rtol=1e-5, atol=0)
        torch.testing.assert_close(packed_entropy, entropy, rtol=1e-5, atol=0)
        assert (packed_gradient - gradient).abs().max() < 1e-5 * gradient.abs().max()


def test_packing_fills_rows() -> None:
    rng = np.random.default_rng(0)
    chunk = Chunk(*[np.zeros(1)] * 5)
    empty = MolmoAct2Sample(
        0, "", np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), np.zeros(1), chunk
    )
    lengths = rng.integers(150, 700, 120)
    given = [
        dataclasses.replace(empty, position=n, input_tokens=np.zeros(k))
        for n, k in enumerate(lengths)
    ]
    rows = samples.pack(given, 2100)
    assert sorted(s.position for row in rows for s in row) == list(range(120))
    used = [sum(s.num_tokens for s in row) for row in rows]
    assert max(used) <= 2100
    assert np.mean(sorted(used)[1:]) / 2100 > 0.98


# Learning


@needs_molmoact2
def test_a_batch_is_learned_by_heart() -> None:
    """Spec section 22 step 8, its first 100 steps; `test_train_molmoact2_overfit.py` goes on, by command."""
    torch.manual_seed(0)
    model, given = fresh(TINY).train(), golden_samples()
    config = debug_config(Path("x"), [Path("y")], checkpoint="z")
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, betas=(0.9, 0.95), eps=1e-6,
        weight_decay=0.0,
    )  # fmt: skip
    batch = collate(given, seq_len=None, text_first=True)
    members = trained_parameters(model, FAMILY)
    history = []
    for _ in range(100):
        times = 0.001 + 0.998 * torch.distributions.Beta(1.0, 1.5).sample((2, 1, 8))
        chunks = dataclasses.replace(
            batch.chunks, noise_BEFTA=torch.randn(2, 1, 8, 12, 32), times_BEF=times
        )
        out = model(**batch.inputs, chunks=chunks)
        out.loss.backward()
        clip_by_group(members, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        history.append((float(out.flow_BE.detach().mean()), float(out.text.cross_entropy)))
    assert history[0][0] > 1.0
    assert history[0][1] > 8.0
    assert np.mean([flow for flow, _ in history[-20:]]) < 0.7
    assert history[-1][1] < 0.3


# Runs


def debug_config(
    folder: Path, data: list[Path], *, checkpoint: str | None = None, **changes: Any
) -> TrainConfig:
    if checkpoint is None:
        checkpoint = str(FAMILY.write_tiny(folder / "tiny"))
    given = {
        "family": "molmoact2", "checkpoint": checkpoint, "data": [str(d) for d in data],
        "output_path": str(folder / "run"),
    }  # fmt: skip
    return resolve("debug", given, changes)


def losses_of(run: Path) -> list[float]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [entry["train/loss"] for entry in map(json.loads, lines) if "train/loss" in entry]


def test_a_killed_run_resumes_with_equal_losses_and_acts(tmp_path: Path) -> None:
    """Both losses, packed, with depth; from the checkpoint of step 3 on, every number is the same."""
    config = debug_config(
        tmp_path, [write_debug_dataset(tmp_path / "data", depth_buffer=True)], packing=True, style_depth_action=1.0,
        depth_input_noise=0.1, residual_dropout=0.1, eval_fraction=0.34,
    )  # fmt: skip
    done = train(config, device="cpu")
    run = tmp_path / "run"
    expected, weights = losses_of(run), WeightFiles(done.folder)
    shutil.copytree(done.folder, tmp_path / "whole")
    shutil.rmtree(done.folder)
    shutil.rmtree(run / "step00000006")
    again = train(config, resume=True, device="cpu")
    assert losses_of(run) == expected
    weights = WeightFiles(tmp_path / "whole")
    for name in weights.names():
        assert torch.equal(weights.read(name), WeightFiles(again.folder).read(name)), name
    policy = MolmoAct2Policy.from_folder(again.folder, device="cpu", seed=0)
    assert policy.options.think
    picture = np.full((96, 96, 3), 40, dtype=np.uint8)
    found = policy.act(Observation({"front": picture, "wrist": picture}, "move the square"))
    assert found.actions_HD.shape == (4, 7)
    assert found.depth_codes is not None
    assert len(found.depth_codes) == 100


def test_the_buffered_codes_are_what_is_learned(tmp_path: Path) -> None:
    """A still camera: most cells keep the first frame's code, and the answer spells these."""
    data = write_debug_dataset(tmp_path / "data", depth_buffer=True)
    answers = {}
    for target in ("auto", "buffer_codes", "depth_codes"):
        config = debug_config(
            tmp_path / target, [data], style_action=0.0, style_depth=1.0, depth_target=target
        )
        encoder = FAMILY.encoder(Path(config.checkpoint), config, training=True)
        source = ShardSource(data, SourceOptions(needs=FAMILY.needs(config), max_images=2))
        row = source.row(5)
        answers[target] = encoder.describe(row, np.random.default_rng(0))["answer"]
        assert row.buffer_codes is not None
        assert row.buffer_codes != row.depth_codes
        wanted = row.depth_codes if target == "depth_codes" else row.buffer_codes
        assert prompts.answer(depth_codes=wanted, action_ids=None) in answers[target]
    assert answers["auto"] == answers["buffer_codes"] != answers["depth_codes"]
    plain = write_debug_dataset(tmp_path / "plain")
    with pytest.raises(UserError, match="--depth-buffer consistent"):
        train(
            debug_config(tmp_path, [plain], style_depth=1.0, depth_target="buffer_codes"),
            device="cpu",
        )


def test_several_robots_and_horizons_train_in_one_run(tmp_path: Path) -> None:
    data = [
        write_debug_dataset(tmp_path / "a", name="lab/arm", chunk_size=4),
        write_debug_dataset(tmp_path / "b", name="lab/small", chunk_size=6, action_dim=5),
    ]
    config = debug_config(
        tmp_path, data, action_mode="continuous", duration=2, tags=["lab/small=small_arm"]
    )
    done = train(config, device="cpu")
    for tag, shape in (("lab/arm", (4, 7)), ("small_arm", (6, 5))):
        policy = MolmoAct2Policy.from_folder(done.folder, statistics_key=tag, device="cpu")
        assert policy.model.config.action_mode == "continuous"
        picture = np.zeros((96, 96, 3), dtype=np.uint8)
        found = policy.act(Observation({"front": picture, "wrist": picture}, "move"))
        assert found.actions_HD.shape == shape


def test_the_expert_alone_trains_and_nothing_else_changes(tmp_path: Path) -> None:
    config = debug_config(
        tmp_path, [write_debug_dataset(tmp_path / "data")], action_mode="continuous", expert_only=True,
        duration=2, residual_dropout=0.1,
    )  # fmt: skip
    before, after = (
        WeightFiles(Path(config.checkpoint)),
        WeightFiles(train(config, device="cpu").folder),
    )
    changed = {n for n in before.names() if not torch.equal(before.read(n), after.read(n))}
    assert changed
    assert all(name.startswith("model.action_expert.") for name in changed)


def test_lora_trains_the_expert_in_full_and_merges(tmp_path: Path) -> None:
    config = debug_config(
        tmp_path, [write_debug_dataset(tmp_path / "data")], lora=True, lora_rank=4, duration=3
    )
    adapter = train(config, device="cpu").folder
    merged = merge_lora(adapter, tmp_path / "merged")
    before, after = WeightFiles(Path(config.checkpoint)), WeightFiles(tmp_path / "merged")
    assert before.names() == after.names()
    changed = {n for n in before.names() if not torch.equal(before.read(n), after.read(n))}
    assert any(name.startswith("model.action_expert.") for name in changed)
    assert any(name.startswith("model.transformer.blocks.") for name in changed)
    assert "lm_head.weight" in changed
    assert not [n for n in changed if "norm" in n and "action_expert" not in n]
    assert merged.adapted
    policy = MolmoAct2Policy.from_folder(tmp_path / "merged", device="cpu")
    assert policy.tag.name == "debug/square"


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"setup_type": ""}, {}, "--setup-type"),
    ({"tags": ["nonsense"]}, {}, "DATASET=TAG"),
    ({}, {"chunk_size": 20, "frames": 24}, "20 steps ahead, this checkpoint's expert at most 12"),
    ({"expert_only": True, "action_mode": "both"}, {}, "trains no token"),
    ({"expert_only": True, "action_mode": "continuous", "lora": True}, {}, "choose one"),
    ({"knowledge_insulation": True, "action_mode": "continuous"}, {}, "without any gradient"),
    ({"style_action": 0.0}, {}, "nothing is trained"),
    ({"action_mode": "fluent"}, {}, "fluent"),
    ({"flow_timesteps": 4}, {}, "Did you mean 'num_flow_timesteps'"),
]


@pytest.mark.parametrize(("changes", "dataset", "said"), BAD)
def test_what_cannot_be_trained_is_one_line(
    tmp_path: Path, changes: dict[str, Any], dataset: dict[str, Any], said: str
) -> None:
    data = write_debug_dataset(tmp_path / "data", **dataset)
    with pytest.raises(UserError) as refused:
        train(debug_config(tmp_path, [data], **changes), device="cpu")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@needs_molmoact2
def test_statistics_of_another_robot_are_refused(tmp_path: Path) -> None:
    """The golden checkpoint's tag is of 7 actions and 8 state numbers; the data have no state."""
    data = write_debug_dataset(tmp_path / "data", name="libero", chunk_size=10, frames=12)
    config = debug_config(tmp_path, [data], checkpoint=str(TINY), action_mode="continuous")
    with pytest.raises(UserError, match="this is another robot"):
        train(config, device="cpu")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """FSDP2 over gloo, both losses, Think, held-out answers: the same numbers as alone."""
    data = write_debug_dataset(tmp_path / "data", state_dim=3)
    checkpoint = FAMILY.write_tiny(tmp_path / "tiny")
    common = f"family: molmoact2\ncheckpoint: {checkpoint}\ndata: [{data}]\nduration: 2\n"
    common += "device_batch_size: 1\neval_fraction: 0.34\nstyle_depth_action: 1.0\n"
    numbers = []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        path = tmp_path / f"{processes}.yaml"
        path.write_text(common + f"output_path: {run}\n")
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        own = ["-m", "cli", "train", "--stage", "debug", "--config", str(path), "--device", "cpu"]
        subprocess.run([sys.executable, *start, *own], cwd=ROOT, check=True, capture_output=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        numbers.append({k: v for line in lines for k, v in line.items() if k in COMPARED})
    assert set(numbers[0]) == set(COMPARED)
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-5)


ROOT = Path(__file__).resolve().parent.parent
COMPARED = (
    "train/loss", "train/flow_loss", "train/cross_entropy", "grad_norm/llm", "grad_norm/connector",
    "grad_norm/expert", "eval/loss", "eval/flow_loss", "eval/action_error",
)  # fmt: skip


def test_predict_knows_the_family_by_the_folder(
    tmp_path: Path, molmoact: Callable[..., tuple[int, str, str]]
) -> None:
    config = debug_config(
        tmp_path, [write_debug_dataset(tmp_path / "data", state_dim=3)], duration=1
    )
    final = train(config, device="cpu").folder
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    asked = ["predict", "--checkpoint", final, "--images", tmp_path / "a.png", "--images", tmp_path / "a.png",
             "--instruction", "move", "--device", "cpu", "--json"]  # fmt: skip
    code, out, _ = molmoact(*asked, "--state", "[0.1, 0.2, 0.3]")
    assert code == 0
    assert np.asarray(json.loads(out)["actions"]).shape == (4, 7)
    code, _, said = molmoact(*asked)
    assert code == 2
    assert "reads the robot's state (3 numbers)" in said
