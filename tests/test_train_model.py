"""The network against the reference's answers (golden/), and every saving against the plain path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN, needs_golden
from safetensors import safe_open
from torch import Tensor

from molmoact_train.debug.tiny import tiny_config, tiny_processor
from molmoact_train.families.molmoact.network import (
    MolmoActForActionReasoning,
    Savings,
    released_config,
)
from molmoact_train.families.molmoact.network.attention import positions_from_documents
from molmoact_train.families.molmoact.network.crops import distinct_crops, every_slot
from molmoact_train.families.molmoact.processor import MolmoActProcessor

PLAIN = Savings(deduplicate_crops=False, loss_rows_only=False, loss_chunk_rows=None)
INPUTS = ("input_ids", "images", "pooled_patches_idx", "image_masks", "attention_mask")


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """The largest difference relative to the largest expected number."""
    assert found.shape == expected.shape
    error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)
    assert error < tolerance, f"relative error {error:.2e}"


def golden(variant: str) -> tuple[MolmoActForActionReasoning, dict[str, Tensor]]:
    folder = GOLDEN / f"tiny-molmoact-{variant}"
    model = MolmoActForActionReasoning.from_pretrained(folder)
    # The reference's HF forward leaves the O variant's padding term out; the option reproduces that.
    model.model.vision_backbone.ignore_image_masks = True
    return model, {k: torch.from_numpy(v) for k, v in np.load(folder / "io.npz").items()}


@pytest.fixture(scope="module")
def processor() -> MolmoActProcessor:
    return tiny_processor()


@pytest.fixture
def model() -> MolmoActForActionReasoning:
    return build("D")


def build(variant: Any) -> MolmoActForActionReasoning:
    torch.manual_seed(0)
    model = MolmoActForActionReasoning(tiny_config(variant=variant)).eval()
    for parameter in model.parameters():  # larger than 0.02, so that nothing hides in rounding
        parameter.data.mul_(3).add_(torch.randn_like(parameter) * 0.05)
    return model


def pictures(number: int, *, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (60, 80, 3), dtype=np.uint8) for _ in range(number)]


def training_batch(processor: MolmoActProcessor, counts: list[int]) -> list[dict[str, Tensor]]:
    """One unpadded sample per entry, with that many images, as batches of one."""
    samples = [
        processor.training_sample(
            pictures(count, seed=i), f"do {'it ' * (i + 1)}", "Based on these, [[1,2]]." * (i + 1)
        )
        for i, count in enumerate(counts)
    ]
    return [{k: torch.from_numpy(v)[None] for k, v in sample.items()} for sample in samples]


@needs_golden
@pytest.mark.parametrize("variant", ["d", "o"])
def test_equals_the_reference(variant: str) -> None:
    model, expected = golden(variant)
    inputs = {name: expected[name] for name in INPUTS}
    labels = expected["input_ids"].clone()
    labels[:, :20] = -100
    found = model(**inputs, labels=labels)
    assert_close(found.logits, expected["logits"])
    assert found.loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    features = model.model.image_features(*(expected[k] for k in INPUTS[1:4]))
    assert_close(features, expected["image_features"])


@needs_golden
@pytest.mark.parametrize("variant", ["d", "o"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generates_what_the_reference_generates(variant: str, use_cache: bool) -> None:  # noqa: FBT001
    model, expected = golden(variant)
    inputs = {name: expected[name] for name in INPUTS}
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache)
    assert torch.equal(ids[:, -8:], expected["greedy"])


@needs_golden
@pytest.mark.parametrize("variant", ["d", "o"])
def test_saves_exactly_the_released_names_and_bits(variant: str, tmp_path: Path) -> None:
    folder = GOLDEN / f"tiny-molmoact-{variant}"
    MolmoActForActionReasoning.from_pretrained(folder).save_pretrained(tmp_path)
    with (
        safe_open(folder / "model.safetensors", "pt") as expected,
        safe_open(tmp_path / "model.safetensors", "pt") as found,
    ):
        assert set(found.keys()) == set(expected.keys())
        for name in expected.keys():  # noqa: SIM118  not a dict
            assert torch.equal(found.get_tensor(name), expected.get_tensor(name)), name


@needs_golden
def test_saved_config_keeps_every_released_field(tmp_path: Path) -> None:
    folder = GOLDEN / "tiny-molmoact-o"
    MolmoActForActionReasoning.from_pretrained(folder).save_pretrained(tmp_path)
    expected, found = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path))
    del expected["transformers_version"]
    for section in ("llm_config", "vit_config", "adapter_config"):  # more fields may come on top
        assert found[section] | expected.pop(section) == found[section]
    assert found | expected == found


def test_the_real_7b_d_has_its_614_tensors() -> None:
    with torch.device("meta"):
        state = MolmoActForActionReasoning(released_config("D")).state_dict()
    assert len(state) == 614
    assert sum(t.numel() for t in state.values()) == 8_119_417_808
    block = "model.transformer.blocks.27."
    vit = "model.vision_backbone.image_vit.transformer.resblocks.24."
    for name, shape in {
        "lm_head.weight": (152064, 3584),
        "model.transformer.wte.new_embedding": (128, 3584),
        block + "self_attn.att_proj.weight": (4608, 3584),
        block + "self_attn.att_proj.bias": (4608,),
        block + "mlp.ff_proj.weight": (37888, 3584),
        vit + "feed_forward.w1.weight": (4304, 1152),
        "model.vision_backbone.image_pooling_2d.wq.weight": (1152, 2304),
        "model.vision_backbone.image_projector.w2.weight": (3584, 18944),
    }.items():
        assert state[name].shape == shape, name
    assert vit.replace("24", "25") + "attention.wq.weight" not in state


def test_the_real_7b_o_has_its_extras() -> None:
    with torch.device("meta"):
        state = MolmoActForActionReasoning(released_config("O")).state_dict()
    backbone = "model.vision_backbone."
    assert state[backbone + "pad_embed"].shape == (2, 2048)
    assert state[backbone + "image_vit.class_embedding"].shape == (1024,)
    assert state[backbone + "image_vit.positional_embedding"].shape == (577, 1024)
    assert backbone + "image_vit.patch_embedding.bias" not in state
    assert state["model.transformer.blocks.31.self_attn.att_proj.weight"].shape == (12288, 4096)
    assert state["model.transformer.blocks.0.self_attn.q_norm.weight"].shape == (4096,)
    assert backbone + "image_vit.transformer.resblocks.22.attention.wq.weight" not in state


@needs_golden
def test_padding_term_of_the_o_variant_equals_a_loop_over_windows() -> None:
    """What training did and the released HF code leaves out, written out patch by patch."""
    model, given = golden("o")
    backbone = model.model.vision_backbone
    assert backbone.pad_embed.abs().max() > 0
    images, index, masks = (given[k] for k in INPUTS[1:4])
    backbone.ignore_image_masks = False
    found = model.model.image_features(images, index, masks)
    expected = []
    for row in range(len(images)):
        patches = backbone.encode(images[row]).flatten(0, 1)
        for patch, share in enumerate(masks[row].flatten().tolist()):
            if share < 1:
                patches[patch] = patches[patch] + backbone.pad_embed[0 if share == 0 else 1]
        for window in index[row].tolist():
            four = torch.stack([patches[p] if p >= 0 else patches[0] * 0 for p in window])[None]
            if max(window) >= 0:
                pooled = backbone.image_pooling_2d(four, four.mean(1, keepdim=True))
                expected.append(backbone.image_projector(pooled[:, 0]))
    assert_close(found, torch.cat(expected), 1e-5)
    backbone.ignore_image_masks = True
    assert not torch.allclose(model.model.image_features(images, index, masks), found, atol=1e-2)


def test_equal_crops_are_encoded_once_and_padded_slots_never(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    batch = processor.image_processor([pictures(2), pictures(1, seed=5)])
    images, index = torch.from_numpy(batch["images"]), torch.from_numpy(batch["pooled_patches_idx"])
    assert images.shape[:2] == (2, 4)  # two slots of the second sample are padding
    encoded = []
    model.model.vision_backbone.image_vit.register_forward_hook(
        lambda _, args, __: encoded.append(len(args[0]))
    )
    ours = model.model.image_features(images, index)
    model.savings = PLAIN
    plain = model.model.image_features(images, index)
    assert encoded == [3, 8]
    assert_close(ours, plain, 1e-6)
    # Overview and tile of a small image are the same pixels: the same bits must come out.
    windows = 9
    assert torch.equal(ours[:windows], ours[windows : 2 * windows])


def test_crops_that_differ_in_one_number_are_both_kept() -> None:
    images = torch.randn(1, 3, 4, 6)
    images[0, 1] = images[0, 0]
    images[0, 1, 3, 5] += 1e-3
    images[0, 2] = images[0, 0]
    kept = distinct_crops(images)
    assert kept.slot_BT.tolist() == [[0, 1, 0]]
    assert torch.equal(kept.crops_UPC, images[0, :2])
    assert every_slot(images).slot_BT.tolist() == [[0, 1, 2]]


def test_crops_of_equal_fingerprint_are_compared_number_by_number() -> None:
    """Two numbers swapped: the sum of the bits is the same, the crop is not."""
    images = torch.randn(1, 1, 4, 6).repeat(1, 2, 1, 1)
    images[0, 1, 0, 0], images[0, 1, 2, 3] = images[0, 0, 2, 3], images[0, 0, 0, 0]
    assert distinct_crops(images).slot_BT.tolist() == [[0, 1]]


def test_a_black_picture_is_not_taken_for_padding(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    """Normalised black is -1 everywhere, which is also what pads crop slots."""
    black = np.zeros((60, 80, 3), dtype=np.uint8)
    batch = processor.image_processor([[black, *pictures(1)], black])
    images, index = torch.from_numpy(batch["images"]), torch.from_numpy(batch["pooled_patches_idx"])
    assert (images[1, 0] == -1).all()
    ours = model.model.image_features(images, index)
    model.savings = PLAIN
    assert_close(ours, model.model.image_features(images, index), 1e-6)


def test_crops_moved_once_by_the_collator_give_the_same_logits(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    (sample,) = training_batch(processor, [2])
    common = {k: sample[k] for k in ("pooled_patches_idx",)}
    expected = model(sample["input_tokens"], sample["images"], **common).logits
    crops = distinct_crops(sample["images"])
    found = model(sample["input_tokens"], crops.crops_UPC, crop_slots=crops.slot_BT, **common)
    assert torch.equal(found.logits, expected)


@pytest.mark.parametrize("variant", ["D", "O"])
def test_every_saving_leaves_loss_and_gradients_as_they_are(
    variant: str, processor: MolmoActProcessor
) -> None:
    model = build(variant)
    (sample,) = training_batch(processor, [2])
    common = {
        "input_ids": sample["input_tokens"],
        "pooled_patches_idx": sample["pooled_patches_idx"],
        "images": sample["images"],
        "image_masks": sample["image_masks"],
        "targets": sample["target_tokens"],
        "loss_weights": sample["loss_masks"] * torch.linspace(0.5, 1, sample["loss_masks"].numel()),
        "loss_divisor": 7.0,
    }
    results = []
    for savings in (PLAIN, Savings(), Savings(loss_chunk_rows=3), Savings(loss_rows_only=False)):
        model.savings = savings
        model.zero_grad()
        loss = model(**common).loss
        loss.backward()
        results.append(
            (loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        )
    plain_loss, plain_grads = results[0]
    largest = max(grad.abs().max() for grad in plain_grads.values())
    for loss, grads in results[1:]:
        assert loss.item() == pytest.approx(plain_loss.item(), rel=1e-6)
        assert grads.keys() == plain_grads.keys()
        for name in grads:
            # Against the largest gradient of all: that of a key bias is zero in exact arithmetic.
            error = (grads[name] - plain_grads[name]).abs().max() / largest
            assert error < 1e-5, f"{name}: {error:.1e}"


def test_logits_are_computed_on_rows_with_loss_only(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    (sample,) = training_batch(processor, [1])
    rows = []
    model.lm_head.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    out = model(
        sample["input_tokens"],
        sample["images"],
        sample["pooled_patches_idx"],
        targets=sample["target_tokens"],
        loss_weights=sample["loss_masks"],
    )
    assert rows == [int(sample["loss_masks"].sum())]
    assert out.loss_rows.tolist() == sample["loss_masks"][0].nonzero()[:, 0].tolist()
    logits = model(sample["input_tokens"], sample["images"], sample["pooled_patches_idx"]).logits
    nll = torch.nn.functional.cross_entropy(
        logits[0, out.loss_rows], sample["target_tokens"][0, out.loss_rows], reduction="none"
    )
    torch.testing.assert_close(out.token_loss.nll_R, nll)


@pytest.mark.parametrize("variant", ["D", "O"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batching_change_nothing(
    variant: str, side: Any, processor: MolmoActProcessor
) -> None:
    """Samples of different length, with one and two images: alone, and together padded on either side."""
    model = build(variant)
    padded = MolmoActProcessor(processor.tokenizer, processor.image_processor, padding_side=side)
    texts = [
        processor.prompt("grasp it"),
        processor.prompt("push the red cube to the far left"),
        "x",
    ]
    images = [pictures(1), pictures(2, seed=1), pictures(2, seed=2)]
    batch = padded(text=texts, images=images)
    together = model(**batch).logits
    for row, (text, sample) in enumerate(zip(texts, images, strict=True)):
        alone = model(**padded(text=text, images=[sample])).logits
        assert_close(together[row, batch["attention_mask"][row].bool()], alone[0], 1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_cache_gives_the_logits_of_the_whole_sequence(
    side: Any, model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    """A prefix, then three tokens at once (as forced tokens are), then one."""
    padded = MolmoActProcessor(processor.tokenizer, processor.image_processor, padding_side=side)
    batch = padded(
        text=["User: a Assistant:", "User: a b c d Assistant:"], images=[pictures(1), pictures(2)]
    )
    if side == "right":  # appended tokens would land after the padding
        batch = padded(text=["User: a Assistant:"], images=[pictures(1)])
    extra = torch.tensor([[5, 6, 7, 8]]).expand(len(batch["input_ids"]), -1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(extra)], dim=1)
    whole = batch | {"input_ids": torch.cat([batch["input_ids"], extra], 1), "attention_mask": mask}
    expected = model(**whole).logits[:, -4:]
    start = model(**batch, use_cache=True)
    length = batch["input_ids"].shape[1]
    cache = start.past_key_values
    three = model(extra[:, :3], attention_mask=mask[:, : length + 3], past_key_values=cache)
    one = model(extra[:, 3:], attention_mask=mask, past_key_values=cache)
    assert_close(torch.cat([three.logits, one.logits], 1), expected, 1e-5)


def test_packed_documents_do_not_see_each_other(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    samples = training_batch(processor, [1, 2, 1])
    patches = torch.tensor([s["images"][0, :, :, 0].numel() for s in samples]).cumsum(0)
    packed = {k: torch.cat([s[k] for s in samples], dim=1) for k in ("input_tokens", "images")}
    index = torch.cat(
        [
            torch.where(s["pooled_patches_idx"] >= 0, s["pooled_patches_idx"] + shift, -1)
            for s, shift in zip(samples, [0, *patches[:-1].tolist()], strict=True)
        ],
        dim=1,
    )
    lengths = [s["input_tokens"].shape[1] for s in samples]
    ids = torch.repeat_interleave(torch.tensor([4, 9, 4]), torch.tensor(lengths))[None]
    found = model(packed["input_tokens"], packed["images"], index, document_ids=ids)
    for part, sample in zip(found.logits.split(lengths, dim=1), samples, strict=True):
        alone = model(sample["input_tokens"], sample["images"], sample["pooled_patches_idx"])
        assert_close(part, alone.logits, 1e-5)


def test_positions_restart_with_each_document() -> None:
    ids = torch.tensor([[3, 3, 3, 8, 8, -1], [0, 1, 1, 1, 1, 2]])
    assert positions_from_documents(ids).tolist() == [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 0]]


def test_training_padding_id_reads_row_zero(model: MolmoActForActionReasoning) -> None:
    wte = model.model.transformer.wte
    found = wte(torch.tensor([[-1, 0, 7, 1024, 1026]]))[0]
    expected = torch.cat([wte.embedding[[0, 0, 7]], wte.new_embedding[[0, 2]]])
    assert torch.equal(found, expected)


def test_images_of_another_sample_are_an_error(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    (sample,) = training_batch(processor, [1])
    with pytest.raises(ValueError, match=r"17 <im_patch> tokens .* but 18 visual vectors"):
        model(sample["input_tokens"][:, 3:], sample["images"], sample["pooled_patches_idx"])


def test_residual_dropout_acts_in_training_only(
    model: MolmoActForActionReasoning, processor: MolmoActProcessor
) -> None:
    ids = torch.tensor([processor.encode("The task is to lift")])
    expected = model(ids).logits
    model.set_residual_dropout(0.1)
    assert torch.equal(model(ids).logits, expected)
    assert not torch.allclose(model.train()(ids).logits, expected, atol=1e-3)


def test_targets_without_weights_are_an_error(model: MolmoActForActionReasoning) -> None:
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ValueError, match="never guessed"):
        model(ids, targets=ids)
