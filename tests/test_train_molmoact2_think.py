"""Think against the public implementation: depth codes with a memory, in batches, and the depth gate."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

import numpy as np
import pytest
import torch
from golden_molmoact2 import (
    FOLDER,
    RELATIVE,
    THINK,
    arrays,
    fresh,
    needs_molmoact2,
    relative,
    tensors,
)

from molmoact_data.labels.depth_memory import DepthMemory, buffered, changed_cells
from molmoact_data.policies import Observation
from molmoact_train.families.molmoact2 import policy as policies, think
from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.network.depth_gate import gate_depth
from molmoact_train.families.molmoact2.policy import MolmoAct2Policy

pytestmark = needs_molmoact2


def thinking(change_rule: Literal["consistent", "original"] = "consistent") -> MolmoAct2Policy:
    """The golden model asked about one camera; its tag names two."""
    policy = MolmoAct2Policy.from_folder(
        THINK, statistics_key="libero", num_steps=3, device="cpu", change_rule=change_rule
    )
    policy.tag = dataclasses.replace(policy.tag, camera_keys=())
    return policy


def frame(number: int, **changes: object) -> Observation:
    golden = arrays("think.npz")
    task = json.loads((FOLDER / "think.json").read_text())["task"]
    seen = Observation({"front": golden[f"frame_{number}"]}, task, golden["raw_state"])
    return dataclasses.replace(seen, **changes)  # type: ignore[arg-type]


def test_four_calls_equal_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first frame, one that changed in places, one that changed by a constant, a black one."""
    golden, policy = arrays("think.npz"), thinking(change_rule="original")
    updated = []
    for number in range(4):
        noise = torch.from_numpy(golden[f"noise_{number}"])
        monkeypatch.setattr(policies.torch, "randn", lambda *_, drawn=noise, **__: drawn)
        before = policy.updated_cells
        found = policy.act(frame(number))
        updated.append(policy.updated_cells - before)
        np.testing.assert_array_equal(found.depth_codes, golden[f"depth_bins_{number}"][0])
        expected = golden[f"actions_{number}"][0]
        assert np.abs(found.actions_HD - expected).max() < RELATIVE * np.abs(expected).max()
    assert updated == [100, *(int(golden[f"update_mask_{n}"].sum()) for n in (1, 2, 3))]


def test_changed_cells_equal_the_original() -> None:
    golden = arrays("think.npz")
    for number, cells in enumerate((100, 100, 16)):
        found = changed_cells(
            golden[f"pair_{number}_previous"], golden[f"pair_{number}_current"], cells, "pil"
        )
        np.testing.assert_array_equal(found, golden[f"pair_{number}_mask"])


def test_a_new_episode_and_a_black_frame_forget() -> None:
    policy = thinking()
    for seen, expected in (
        (frame(0), 100),
        (frame(2), None),
        (frame(2, episode="next"), 100),
        (frame(3, episode="next"), 100),
        (frame(2, episode="next"), 100),
        (frame(2, episode="next"), 0),
    ):
        before = policy.updated_cells
        policy.act(seen)
        if expected is not None:
            assert policy.updated_cells - before == expected
    before = policy.updated_cells
    policy.reset()
    policy.act(frame(2, episode="next"))
    assert policy.updated_cells - before == 100


def test_kept_codes_cost_no_pass_and_rows_of_a_batch_do_not_disturb_each_other() -> None:
    policy, rng = thinking(), np.random.default_rng(0)
    prompts = [policy._prompt(frame(0)), policy._prompt(frame(1, instruction="open it"))]
    depth = policy.model.config.depth_tokens
    assert depth is not None
    updates = rng.random((2, 100)) < np.array([[0.3], [0.1]])
    kept = rng.integers(0, 128, (2, 100))
    together = Decoding(policy.model, prompts)
    answers, _ = think.write_depth(together, depth, updates, kept)
    contexts = together.expert_context()
    assert together.forward_passes == updates.sum(axis=1).max() + 1
    for row in range(2):
        alone = Decoding(policy.model, prompts[row : row + 1])
        one, _ = think.write_depth(alone, depth, updates[[row]], kept[[row]])
        assert alone.forward_passes == updates[row].sum() + 1
        np.testing.assert_array_equal(one[0].codes_G, answers[row].codes_G)
        np.testing.assert_array_equal(one[0].codes_G[~updates[row]], kept[row][~updates[row]])
        own, context = together._real[row], alone.expert_context()
        for found, expected in zip(contexts.keys, context.keys, strict=True):
            assert relative(found[row, :, own], expected[0]) < RELATIVE
        assert contexts.mask_B1QS is not None
        assert context.mask_B1QS is not None
        assert torch.equal(contexts.mask_B1QS[row, 0, 0, own], context.mask_B1QS[0, 0, 0])


def test_a_full_answer_and_one_with_30_percent_changed() -> None:
    """The saving that the issue asks for, in passes of the decoder: at most half."""
    policy = thinking()
    depth = policy.model.config.depth_tokens
    assert depth is not None
    passes = []
    for share in (1.0, 0.3):
        updates = (np.arange(100) < 100 * share)[None]
        decoding = Decoding(policy.model, [policy._prompt(frame(0))])
        think.write_depth(decoding, depth, updates, np.zeros((1, 100), dtype=np.int64))
        passes.append(decoding.forward_passes)
    assert passes == [101, 31]


def test_the_depth_gate_equals_the_original() -> None:
    golden, model = tensors("think.npz"), fresh(THINK)
    ids, visible = golden["gate_input_ids"], golden["gate_encoder_mask"]
    assert torch.equal(model._is_depth(ids), golden["gate_depth_mask"])
    gate = model.model.action_expert_depth_gate[-1]
    values = golden["ungated_v_last"]
    with torch.no_grad():
        _, gated = gate_depth(gate, [values], [values], visible, golden["gate_depth_mask"])
    assert relative(gated[0], golden["gated_v_last"]) < RELATIVE
    first_depth = int(golden["gate_depth_mask"][0].nonzero()[0])
    ratio = gated[0][0, first_depth] / values[0, first_depth]
    expected = golden["gate_values"][-1].flatten().expand_as(ratio)
    torch.testing.assert_close(ratio, expected, rtol=1e-4, atol=0)


def test_packed_documents_have_a_gate_each() -> None:
    golden, model = tensors("think.npz"), fresh(THINK)
    gate = model.model.action_expert_depth_gate[0]
    values, depth = golden["ungated_v_last"], golden["gate_depth_mask"]
    visible = golden["gate_encoder_mask"]
    other = values.flip(-1)
    documents = torch.arange(2).repeat_interleave(values.shape[1])[None]
    with torch.no_grad():
        _, packed = gate_depth(
            gate, [torch.cat([values, other], 1)], [torch.cat([values, other], 1)],
            torch.cat([visible] * 2, 1), torch.cat([depth] * 2, 1), documents,
        )  # fmt: skip
        alone = [gate_depth(gate, [v], [v], visible, depth)[1][0] for v in (values, other)]
    assert relative(packed[0], torch.cat(alone, dim=1)) < 1e-6


def test_the_companion_columns_equal_the_originals_annotation() -> None:
    golden = arrays("depth_companion.npz")
    frames, codes = golden["frames_bgr"], golden["depth_codes"]
    found = buffered(DepthMemory("opencv", black_forgets=False), frames, codes)
    np.testing.assert_array_equal(found.updated_TG, golden["depth_updated_mask"])
    np.testing.assert_array_equal(found.buffer_TG, golden["buffer_codes"])


def test_annotation_and_inference_disagree_as_in_the_original() -> None:
    """OpenCV's resize against PIL's: on a noisy pair one sees more change than the other."""
    golden = arrays("depth_companion.npz")
    before, now = golden["large_previous"], golden["large_current"]
    updated = changed_cells(before, now, 100, "opencv")
    np.testing.assert_array_equal(updated, golden["large_annotation_mask"].reshape(-1))
    inferred = changed_cells(before, now, 100, "pil")
    np.testing.assert_array_equal(inferred, golden["large_inference_mask"].reshape(-1))
    assert inferred.sum() != updated.sum()
