"""The Molmo pointer: answers are parsed exactly, and the loading and decoding code runs a real checkpoint folder.

The folder is made here: a tiny network with remote code that takes the arguments Molmo's takes, checks what
the decoding loop feeds it, and "sees" the brightness of the picture.
"""

from __future__ import annotations

import json
import math
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save_file

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPointer
from molmoact_data.teachers.answers import (
    answer_confidence,
    arms_from_percent,
    format_points,
    parse_points,
)
from molmoact_data.teachers.molmo import MOLMO_7B_D, PINNED_REVISIONS, MolmoPointer

PERCENT = st.integers(0, 1000).map(lambda tenth: tenth / 10)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('<point x="63.5" y="44.5" alt="gripper">gripper</point>', [(63.5, 44.5)]),
        (' <point x="0" y="100" alt="a">a</point>', [(0, 100)]),
        ("<point x='1.0' y='2.0'>", [(1, 2)]),
        ('<point alt="x" y="2.0" x = "1.5" >', [(1.5, 2)]),
        ('<point x=" 7.5 " y=".5">', [(7.5, 0.5)]),
        ('<points x1="10.0" y1="20.0" x2="30.5" y2="40.1" alt="g">', [(10, 20), (30.5, 40.1)]),
        ('<point x="1" y="2">a</point> and <point x="3" y="4">b</point>', [(1, 2), (3, 4)]),
        ('<points x1="10.0" y1="20.0" x2="30.5" y2="40', [(10, 20)]),
        ('<points x1="10.0" x2="30.5" y2="40.0">', [(30.5, 40)]),
        ('<points x1="1.0" y1="2.0" x1="3.0" y1="4.0">', [(1, 2)]),
        ('<point alt=\'x="9" y="9"\' x="1" y="2">', [(1, 2)]),
        ('<point\n  x="1"\n  y="2"/>', [(1, 2)]),
    ],
)
def test_points_are_read(answer: str, expected: list[tuple[float, float]]) -> None:
    assert parse_points(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There are none.",
        "The gripper is at (63.5, 44.5).",
        '<point x="63.5" y="44.',
        '<point x="63.5">',
        '<point x="63.5" y="">',
        '<point x="-1.0" y="2.0">',
        '<point x="100.1" y="2.0">',
        '<point x="nan" y="2.0">',
        '<point x="1e1" y="2.0">',
        '<point x="12.3.4" y="2.0">',
        '<point x="1,5" y="2.0">',
        '<point x=1.0 y=2.0>',
        '<pointer x="1.0" y="2.0">',
        '<points x1="1.0" y2="2.0">',
        'x="1.0" y="2.0"',
        '<point alt="x="1" y="2">',
    ],
)  # fmt: skip
def test_malformed_answers_are_not_found(answer: str) -> None:
    assert parse_points(answer) == []


@given(st.lists(st.tuples(PERCENT, PERCENT), max_size=5))
def test_format_and_parse_are_inverse(points: list[tuple[float, float]]) -> None:
    assert parse_points(format_points(points, "robot gripper")) == points


@given(st.text())
def test_any_text_gives_points_in_range_or_none(text: str) -> None:
    for answer in (text, f"<point {text}>", f'<point x="{text}" y="1.0">'):
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in parse_points(answer))


def test_percent_becomes_unit_coordinates_as_the_reference_reads_it() -> None:
    """Reference: pixel = x/100*w, grid = pixel for 256 pixels; ours: grid = unit*255. Equal at 256."""
    unit = arms_from_percent([(63.5, 44.5)], 1, (256, 256))
    np.testing.assert_allclose(unit[0] * 255, [0.635 * 256, 0.445 * 256], rtol=1e-6)
    assert arms_from_percent([(100, 0)], 1, (240, 320)).tolist() == [[1, 0]]
    assert np.isnan(arms_from_percent([], 1, (240, 320))).all()


def test_arms_are_ordered_from_left_to_right() -> None:
    arms = arms_from_percent([(80, 10), (20, 30), (0, 0)], 2, (101, 101))
    assert arms[0, 0] < arms[1, 0]
    assert np.isnan(arms_from_percent([(80, 10)], 2, (101, 101))).all()


def test_confidence_is_of_the_digits_alone() -> None:
    """sqrt(0.9 * 0.4) = 0.6, whatever the words around them cost."""
    tokens, logprobs = ["<point", '"6', "3.5", "alt"], [math.log(p) for p in (0.1, 0.9, 0.4, 0.01)]
    assert answer_confidence(tokens, logprobs) == pytest.approx(0.6)
    assert answer_confidence(["none"], [0.0]) == 0


MODELING = '''
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

ALPHABET = "\\0 <>/=.\\"" + "0123456789" + "abcdefghijklmnopqrstuvwxyz"

class TinyConfig(PretrainedConfig):
    model_type = "tiny_pointing"

class TinyPointing(PreTrainedModel):
    """Says <point x="(brightness in percent)" y="25.0" ...>; black pictures have no gripper."""
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.sharpness = nn.Parameter(torch.zeros(()))
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, input_ids, attention_mask, position_ids, use_cache, last_logits_only,
                images=None, image_masks=None, image_input_idx=None, past_key_values=None):
        assert use_cache and last_logits_only
        if past_key_values is None:
            assert images.shape[0] == input_ids.shape[0] and images.dtype == self.dtype
            assert image_input_idx.max() < input_ids.shape[1] and image_masks.min() == 1
            self.batches = getattr(self, "batches", []) + [len(images)]
            percent = (images.mean(dim=(1, 2, 3)) * 100).tolist()
            said = ["none" if p == 0 else f'<point x="{p:.1f}" y="25.0" alt="g">g</point>' for p in percent]
            script = torch.tensor([[ALPHABET.index(c) for c in s.ljust(60, "\\0")] for s in said])
            length, step = input_ids.shape[1], 0
        else:
            script, length, step = past_key_values
            assert images is None and input_ids.shape[1] == 1
            assert position_ids.unique().tolist() == [length + step - 1]
            assert attention_mask.shape[1] >= length + step and attention_mask.all()
            still = (script[:, :step] != 0).all(dim=1)  # rows that have not ended feed back their token
            if self.sharpness > 0:
                assert torch.equal(input_ids[still, 0], script[still, step - 1])
        logits = torch.zeros(len(script), 1, len(ALPHABET), dtype=self.dtype)
        logits[torch.arange(len(script)), 0, script[:, step]] = self.sharpness
        return CausalLMOutputWithPast(logits=logits, past_key_values=(script, length, step + 1))
'''

PROCESSING = """
import numpy as np
import torch

ALPHABET = "\\0 <>/=.\\"" + "0123456789" + "abcdefghijklmnopqrstuvwxyz"

class TinyTokenizer:
    eos_token_id = 0
    def decode(self, ids):
        return "".join(ALPHABET[i] for i in ids)

class TinyProcessor:
    tokenizer = TinyTokenizer()
    @classmethod
    def from_pretrained(cls, path, **kwargs):
        return cls()
    @classmethod
    def register_for_auto_class(cls):
        pass
    def process(self, images, text):
        (image,) = images
        assert image.mode == "RGB"
        pixels = torch.tensor(np.asarray(image) / 255.0, dtype=torch.float32).reshape(1, -1, 3)
        return {
            "input_ids": torch.tensor([1] * 4 + [2 + len(word) for word in text.split()]),
            "images": pixels,
            "image_input_idx": torch.arange(4)[None],
            "image_masks": torch.ones(1, 4),
        }
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    auto_map = {
        "AutoConfig": "modeling_tiny.TinyConfig",
        "AutoModelForCausalLM": "modeling_tiny.TinyPointing",
        "AutoProcessor": "processing_tiny.TinyProcessor",
    }
    config = {
        "model_type": "tiny_pointing",
        "architectures": ["TinyPointing"],
        "auto_map": auto_map,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_tiny.py").write_text(textwrap.dedent(MODELING))
    (folder / "processing_tiny.py").write_text(textwrap.dedent(PROCESSING))
    write_weights(folder, sharpness=8.0)
    return folder


def write_weights(folder: Path, sharpness: float) -> None:
    tensors = {"sharpness": torch.tensor(sharpness)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def grey_frames(*levels: int) -> np.ndarray:
    return np.stack([np.full((32, 48, 3), level, np.uint8) for level in levels])


def test_batched_answers_of_a_checkpoint_folder(checkpoint: Path) -> None:
    """x is the brightness: 51/255 = 20 %, 204/255 = 80 %; the black picture has no gripper."""
    pointer = MolmoPointer(str(checkpoint), device="cpu", batch_size=2)
    assert isinstance(pointer, GripperPointer)
    points = pointer.point(grey_frames(51, 0, 204), "point to the robot gripper")
    expected = [[0.2 * 48 / 47, 0.25 * 32 / 31], [np.nan] * 2, [0.8 * 48 / 47, 0.25 * 32 / 31]]
    np.testing.assert_allclose(points.xy_NA2[:, 0], expected, rtol=1e-5)
    certain = math.exp(8) / (math.exp(8) + 43)  # one token of 44 has logit 8, the rest 0
    np.testing.assert_allclose(points.confidence_NA[:, 0], [certain, 0, certain], rtol=1e-4)
    assert pointer.model.batches == [2, 2]  # three frames, the last batch filled up
    assert pointer.point(grey_frames(51)[:0], "point").xy_NA2.shape == (0, 1, 2)


def test_generation_stops_when_the_point_is_told(checkpoint: Path) -> None:
    pointer = MolmoPointer(str(checkpoint), device="cpu", batch_size=1)
    (answer,) = pointer.answers(grey_frames(51), "point to the robot gripper")
    assert answer.text == '<point x="20.0" y="25.0"'
    (answer,) = pointer.answers(grey_frames(0), "point to the robot gripper")
    assert (answer.text, answer.complete) == ("none", True)


def test_an_untrained_model_finds_nothing(checkpoint: Path) -> None:
    write_weights(checkpoint, sharpness=0.0)
    pointer = MolmoPointer(str(checkpoint), device="cpu", batch_size=2, max_new_tokens=5)
    points = pointer.point(grey_frames(51, 204), "point to the robot gripper")
    assert np.isnan(points.xy_NA2).all()
    assert (points.confidence_NA == 0).all()


def test_description_and_errors(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = MolmoPointer(str(checkpoint), device="cpu").describe()
    assert described == {"name": "molmo/tiny", "revision": "local", "licence": "Apache-2.0"}
    with pytest.raises(UserError, match="so a commit must be named"):
        MolmoPointer("someone/else")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=PINNED_REVISIONS[MOLMO_7B_D]):
        MolmoPointer()
