"""Held-out numbers: by hand on small cases, and against the labels themselves."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from made_training import open_eval_data, open_training_data
from PIL import Image

from molmoact_data.pictures.overlay import TAKEN_RGB
from molmoact_data.processes import World
from molmoact_train.config import resolve
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import TinySize, tiny_config, tiny_processor
from molmoact_train.evaluation import evaluate
from molmoact_train.families.measures import (
    AnswerErrors,
    action_error,
    compare_codes,
    summarise_answers,
    trace_distance,
)
from molmoact_train.families.molmoact import predictor as predictor_module
from molmoact_train.families.molmoact.answers import Prediction
from molmoact_train.families.molmoact.evaluation import PartSums, answer_errors
from molmoact_train.families.molmoact.family import FAMILY
from molmoact_train.families.molmoact.grammar import build_grammar
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.predictor import Predictor
from molmoact_train.monitoring.answers import read_answers
from molmoact_train.monitoring.page import render_run_page

SIZE = TinySize(width=32, layers=1, vit_width=16, vit_layers=2, image_size=56)
ALONE = World(0, 1, torch.device("cpu"))


def test_sums_by_part() -> None:
    sums = PartSums.empty()
    sums.add(
        nll_R=torch.tensor([2.0, 4.0, 1.0]),
        correct_R=torch.tensor([True, False, True]),
        parts_R=torch.tensor([1, 1, 3], dtype=torch.int8),
        weights_R=torch.tensor([1.0, 3.0, 2.0]),
    )
    assert sums.summary("eval") == pytest.approx(
        {
            "eval/loss": (2 + 12 + 2) / 6,
            "eval/accuracy": 3 / 6,
            "eval/loss_depth": 14 / 4,
            "eval/accuracy_depth": 1 / 4,
            "eval/loss_action": 1.0,
            "eval/accuracy_action": 1.0,
        }
    )


def test_distances() -> None:
    line = [[0, 0], [30, 40]]
    assert trace_distance(line, line) == 0
    assert trace_distance([[0, 0], [15, 20], [30, 40]], line) == pytest.approx(0), "same path"
    assert trace_distance([[3, 4], [33, 44]], line) == pytest.approx(5)
    assert trace_distance([[10, 0]], [[10, 7]]) == pytest.approx(7)
    assert trace_distance([], line) > 255
    assert compare_codes([1, 2, 3, 4], [1, 0, 3, 0]) == 0.5
    assert compare_codes(None, [1]) is None


def test_action_error_counts_recorded_steps_only() -> None:
    found = np.array([[1.0, 0.0], [3.0, 0.0], [99.0, 99.0]])
    recorded = np.array([[0.0, 0.5], [1.0, 0.5]], dtype=np.float32)
    assert action_error(found, recorded).tolist() == [1.5, 0.5]


def test_answers_without_a_part_do_not_count_in_it() -> None:
    found = summarise_answers(
        [
            AnswerErrors(0.5, 4.0, np.array([1.0, 3.0])),
            AnswerErrors(None, None, np.array([2.0, 5.0])),
        ]
    )
    assert found == pytest.approx(
        {
            "eval/code_accuracy": 0.5,
            "eval/trace_distance_error": 4.0,
            "eval/action_error": (1.5 + 4.0) / 2,
            "eval/action_error_dim0": 1.5,
            "eval/action_error_dim1": 4.0,
        }
    )
    assert summarise_answers([]) == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_debug_dataset(
        tmp_path_factory.mktemp("data"), episodes=4, frames=5, size=56, chunk_size=2
    )


def test_teacher_forced_loss_is_the_mean_over_single_samples(folder: Path) -> None:
    """The independent answer runs every sample alone, on the plain path, with torch's cross-entropy."""
    given = {"checkpoint": "c", "data": ["x"], "output_path": "s", "eval_data": [str(folder)]}
    config = resolve("debug", given, {"eval_samples": 5, "device_batch_size": 2})
    data = open_eval_data(config, tiny_processor(SIZE))
    assert data is not None
    torch.manual_seed(0)
    model = MolmoActForActionReasoning(tiny_config(SIZE)).eval()
    found = evaluate.teacher_forced(FAMILY, model, data, config, ALONE)
    total = weight = 0.0
    for position in range(5):
        sample = data[position]
        images = torch.from_numpy(sample.crops_UPC[sample.crop_slots])[None]
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(sample.input_tokens)[None],
                images=images,
                pooled_patches_idx=torch.from_numpy(sample.pooled_patches_idx)[None],
            ).logits[0]
        answered = sample.loss_weights > 0  # the prompt's image tokens have no logit at all
        targets = torch.from_numpy(sample.target_tokens[answered])
        total += float(
            torch.nn.functional.cross_entropy(logits[answered], targets, reduction="sum")
        )
        weight += float(answered.sum())
    assert found["eval/loss"] == pytest.approx(total / weight, rel=1e-5)


def test_a_perfect_answer_has_no_error_beyond_the_bins(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle that answers with the labels: codes and traces exact, actions within half a bin."""
    given = {"checkpoint": "c", "data": [str(folder)], "output_path": "s"}
    data = open_training_data(resolve("debug", given), tiny_processor(SIZE))
    (source,) = data.sources
    expected = source.row(3)

    def oracle(self: Predictor, *_: object, **__: object) -> Prediction:
        from molmoact_train.families.molmoact.predictor import robot_actions

        ((key, entry),) = self.norm_stats.items()
        bins = expected.action_bins.tolist()
        return Prediction(
            "", key, [list(expected.depth_codes)], expected.traces, bins,
            robot_actions(bins, key, entry).tolist(), [], {}, 0, 0,
        )  # fmt: skip

    monkeypatch.setattr(Predictor, "predict", oracle)
    model = MolmoActForActionReasoning(tiny_config(SIZE))
    predictor = Predictor(model, data.encoder.processor, source.statistics.to_json())
    errors = answer_errors(predictor, data.encoder, source, 3)
    assert errors.code_accuracy == 1.0
    assert errors.trace_distance == 0.0
    action = source.statistics.action
    half_bin = 0.5 * (action.q99 - action.q01) * (1 / 255) + 5e-3  # the gripper: last centre 0.996
    clipped = np.maximum(action.max - action.q99, action.q01 - action.min)
    assert (errors.action_error_D <= half_bin + clipped).all()


def test_an_answer_that_is_no_action_is_counted_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from molmoact_data.policies import PredictionFailed

    def failing(self: Predictor, *_: object, **__: object) -> Prediction:
        raise PredictionFailed("not_finite", "NaN")

    given = {"checkpoint": "c", "data": ["x"], "output_path": "s", "eval_data": [str(folder)]}
    config = resolve("debug", given, {"eval_generate": 2})
    data = open_eval_data(config, tiny_processor(SIZE))
    assert data is not None
    monkeypatch.setattr(Predictor, "predict", failing)
    model = MolmoActForActionReasoning(tiny_config(SIZE)).eval()
    found = evaluate.generated(FAMILY, model, data, config, ALONE, run=tmp_path)
    assert found == {"eval/failed_answers": 2.0}
    assert [(f.verdict, f.pill) for f in read_answers(tmp_path)] == [("bad", "not finite")] * 2


@pytest.mark.parametrize("wording", ["released", "reference"])
def test_generated_answers_have_every_part(
    folder: Path, wording: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two answers of one source build one grammar; the reference's wording says the one arm twice.

    The run's page shows them: the recorded path in amber, and what is said.
    """
    built = []
    monkeypatch.setattr(
        predictor_module, "build_grammar", lambda *a: built.append(a) or build_grammar(*a)
    )
    given = {"checkpoint": "c", "data": ["x"], "output_path": "s", "eval_data": [str(folder)]}
    config = resolve("debug", given, {"eval_generate": 2, "wording": wording})
    data = open_eval_data(config, tiny_processor(SIZE))
    assert data is not None
    torch.manual_seed(0)
    model = MolmoActForActionReasoning(tiny_config(SIZE)).eval()
    found = evaluate.generated(FAMILY, model, data, config, ALONE, run=tmp_path)
    assert {"eval/code_accuracy", "eval/trace_distance_error", "eval/action_error_dim6"} <= set(
        found
    )
    assert all(np.isfinite(list(found.values())))
    assert len(built) == 1
    shown = read_answers(tmp_path)
    assert [figure.caption.partition(":")[0] for figure in shown] == ["move the square"] * 2
    for figure in shown:
        encoded = base64.b64decode(figure.address.partition(",")[2])
        rgb = np.asarray(Image.open(io.BytesIO(encoded))).astype(int)
        assert rgb.shape == (figure.height, figure.width, 3)
        assert (np.abs(rgb - TAKEN_RGB).sum(axis=2) < 90).any(), "the recorded path"
    page = render_run_page("run", {"duration": 1}, [{"step": 1, "train/loss": 2.0}], shown)
    assert page.count("of the depth codes right, actions off by") == 2
    assert "Example answers" in page
    assert "Example answers" not in render_run_page("run", {"duration": 1}, [])
