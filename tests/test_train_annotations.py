"""Several annotations of one picture in one sample: each branch learns what it would learn alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_web import EVERYTHING
from PIL import Image

from molmoact_data.text.annotations import Annotation
from molmoact_train.data.base import ConversationRow
from molmoact_train.data.conversations import ConversationSource
from molmoact_train.data.rendering import RenderSettings
from molmoact_train.data.split import SourceOptions
from molmoact_train.families.molmoact.encoder import MolmoActEncoder
from molmoact_train.families.molmoact.network import MolmoActForActionReasoning
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.tiny import write_tiny_checkpoint
from pipelines.web.config import WebConfig
from pipelines.web.run import preprocess_web

CONVERSATIONS = (
    ("vqa2: is it red?", "yes"),
    ("Why?", "Because.", "And then?", "It is."),
    ("pointing: the red square", "There are none."),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(checkpoint: Path) -> MolmoActProcessor:
    return MolmoActProcessor.from_pretrained(checkpoint)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def tensors(fields: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    names = ["images", "image_masks", "pooled_patches_idx", "branch_ids"]
    found = {name: torch.from_numpy(fields[name])[None] for name in names if name in fields}
    return {"input_ids": torch.from_numpy(fields["input_tokens"])[None], **found}


def test_every_branch_is_what_it_would_be_alone(
    checkpoint: Path, processor: MolmoActProcessor
) -> None:
    model = MolmoActForActionReasoning.from_pretrained(checkpoint).eval()
    together = processor.annotated_sample([picture()], CONVERSATIONS)
    logits = model(**tensors(together)).logits[0].detach()
    for number, conversation in enumerate(CONVERSATIONS, start=1):
        alone = processor.annotated_sample([picture()], [conversation])
        expected = (
            model(**tensors({k: v for k, v in alone.items() if k != "branch_ids"}))
            .logits[0]
            .detach()
        )
        mine, its = together["branch_ids"] == number, alone["branch_ids"] == 1
        torch.testing.assert_close(logits[mine], expected[its], rtol=1e-4, atol=1e-5)
        for name in ("input_tokens", "target_tokens"):
            np.testing.assert_array_equal(together[name][mine], alone[name][its])


def test_one_pair_is_the_ordinary_training_sample(processor: MolmoActProcessor) -> None:
    branch = processor.annotated_sample([picture()], CONVERSATIONS[:1])
    plain = processor.training_sample([picture()], *CONVERSATIONS[0])
    for name in ("input_tokens", "target_tokens", "loss_masks", "images", "pooled_patches_idx"):
        np.testing.assert_array_equal(branch[name], plain[name])


def test_loss_is_on_answers_and_their_ends_and_shrinks_with_the_root(
    processor: MolmoActProcessor,
) -> None:
    fields = processor.annotated_sample([picture()], CONVERSATIONS)
    learned = fields["loss_masks"] > 0
    assert set(fields["loss_masks"][learned]) == {np.float32(1) / np.sqrt(np.float32(3))}
    assert not fields["loss_masks"][fields["branch_ids"] == 0].any()
    for number, conversation in enumerate(CONVERSATIONS, start=1):
        mine = fields["branch_ids"] == number
        targets = fields["target_tokens"][mine & learned].tolist()
        expected = [
            i
            for text in conversation[1::2]
            for i in [*processor.encode(f" {text}"), processor.eos_id]
        ]
        assert targets == expected


def test_annotations_that_do_not_fit_are_left_out(processor: MolmoActProcessor) -> None:
    whole = processor.annotated_sample([picture()], CONVERSATIONS)
    fitting = processor.annotated_sample(
        [picture()], CONVERSATIONS, max_tokens=len(whole["input_tokens"]) - 1
    )
    assert set(fitting["branch_ids"]) == {0, 1, 2}
    assert fitting["loss_masks"].max() == np.float32(1) / np.sqrt(np.float32(2))
    assert set(
        processor.annotated_sample([picture()], CONVERSATIONS, max_tokens=1)["branch_ids"]
    ) == {0, 1}


def encoder(processor: MolmoActProcessor) -> MolmoActEncoder:
    return MolmoActEncoder(
        processor, RenderSettings({}, "released", augment=False, crop_depth=False, max_side=84)
    )


def test_a_batch_mixes_samples_with_and_without_branches(
    checkpoint: Path, processor: MolmoActProcessor
) -> None:
    import io

    encoded = io.BytesIO()
    picture().save(encoded, "PNG")
    one = ConversationRow("a", (encoded.getvalue(),), (("q?", "a"),), None)
    several = replace(
        one,
        annotations=(
            Annotation("vqa2", "is it?", ("yes",)),
            Annotation("user_qa", "why?", ("so",)),
        ),
        weight=2.0,
    )
    mine = encoder(processor)
    samples = [
        mine.sample(i, row, np.random.default_rng(i)) for i, row in enumerate((one, several))
    ]
    assert samples[0].branch_ids is None
    assert samples[1].loss_weights.max() == pytest.approx(2 / np.sqrt(2))
    model = MolmoActForActionReasoning.from_pretrained(checkpoint).eval()

    def loss(chosen: list) -> torch.Tensor:
        batch = mine.collate(chosen)
        return model(**batch.inputs, loss_divisor=1.0).loss.detach()

    torch.testing.assert_close(
        loss(samples), loss(samples[:1]) + loss(samples[1:]), rtol=1e-4, atol=1e-4
    )


def test_shards_of_a_general_set_are_training_rows(
    tmp_path: Path, processor: MolmoActProcessor
) -> None:
    for name in ("coco", "tables"):
        EVERYTHING[name](tmp_path / "raw")
    for name in ("coco_2014_vqa_multi", "chart_qa_weighted"):
        preprocess_web(WebConfig(name, str(tmp_path / "raw"), str(tmp_path / name)))
    source = ConversationSource(tmp_path / "coco_2014_vqa_multi", SourceOptions(needs={}))
    row = source.row(0)
    assert [a.question for a in row.annotations] == ["is it 1?", "is it 2?"]
    sample = encoder(processor).sample(0, row, np.random.default_rng(0))
    assert sample.branch_ids is not None
    assert set(sample.branch_ids) == {0, 1, 2}
    weighted = ConversationSource(tmp_path / "chart_qa_weighted", SourceOptions(needs={}))
    sample = encoder(processor).sample(0, weighted.row(0), np.random.default_rng(0))
    assert sample.loss_weights.max() == pytest.approx(2 * 20901 / 28299)
