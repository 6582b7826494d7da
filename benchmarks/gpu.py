"""What an accelerator does with every network here, beside the reference's way of doing it, in one run of ten minutes.

    python benchmarks/gpu.py                       # CUDA where there is one: real sizes, random weights
    python benchmarks/gpu.py --shapes small        # any machine: the same code on small shapes (a test runs it)
    python benchmarks/gpu.py --sections depth pointer --json gpu.json

Nothing is downloaded. One table, one JSON. A row that does not fit the memory says so; rows that the budget does not
reach are listed as not run. The reference's way: one frame at a time in fp32 (depth, codes, points), padded batches
with every row through the LM head (training). Timings of different machines are not to be compared; ratios within a
run are.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_molmoact2 import molmoact2
from gpu_rows import (
    Row,
    Section,
    Setting,
    attempted,
    free,
    inference,
    measured,
    on_device,
    run,
    training_step,
    tuned,
)
from rich.console import Console
from rich.table import Table
from teacher_flops import depth_anything, vqvae_network
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_step import (
    ANSWER_TOKENS,
    PLAIN,
    PROMPT_TOKENS,
    analytic_7b,
    our_batch,
    plain_batch,
)
from transformers.cache_utils import DynamicCache

from molmoact_train.families.molmo.config import network_config
from molmoact_train.families.molmoact.network import (
    MolmoActAdapterConfig,
    MolmoActConfig,
    MolmoActForActionReasoning,
    MolmoActLlmConfig,
    MolmoActVitConfig,
    Savings,
    released_config,
)

BUDGET_S = 9 * 60.0
LABEL_TOKENS = 26
"""Length of Molmo's answer with one point."""


def counted_flops(forward: Callable[[Tensor], object], example: Tensor) -> float:
    """Of one forward pass on `meta`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(example)
    return float(counter.get_total_flops())


def depth(setting: Setting) -> Iterator[Row]:
    """Depth-Anything: the reference's one frame in fp32, then batches, bf16, compiled."""
    side = 518 if setting.real else 56
    for encoder in ("vits", "vitb") if setting.real else ("vits",):
        flops = counted_flops(
            lambda x, e=encoder: depth_anything(e)(x), torch.empty(1, 3, side, side, device="meta")
        )
        for name, dtype, compiled, batches in (
            ("reference: fp32", torch.float32, False, (1,)),
            ("fp32", torch.float32, False, setting.batches(8, 32)),
            ("bf16", setting.low, False, setting.batches(8, 32, 64)),
            ("bf16 compiled", setting.low, True, setting.batches(32) if setting.real else ()),
        ):
            model = on_device(depth_anything(encoder), setting, dtype)
            forward = torch.compile(model) if compiled else model
            for batch in batches:
                frames = torch.rand(batch, 3, side, side, device=setting.device, dtype=dtype)
                row = Row("depth", f"{encoder} {name}, batch {batch}", None, "frames/s")
                yield measured(
                    row, setting, batch, inference(partial(forward, frames)), flops * batch
                )
        yield bf16_effect(encoder, side, setting)


def bf16_effect(encoder: str, side: int, setting: Setting) -> Row:
    """How many of 256 grey levels of the depth map move by bf16, on one picture and random weights."""
    frame = torch.rand(1, 3, side, side, device=setting.device)
    maps = []
    for dtype in (torch.float32, setting.low):
        model = on_device(depth_anything(encoder), setting, torch.float32).to(dtype)
        with torch.inference_mode():
            depth_map = model(frame.to(dtype)).predicted_depth.float()
        low, high = depth_map.aminmax()
        maps.append(((depth_map - low) / (high - low).clamp(min=1e-12) * 255).round())
    moved = float((maps[0] - maps[1]).abs().mean())
    note = f"bf16 moves a grey level by {moved:.2f} on average (random weights, not the published ones)"
    return Row("depth", f"{encoder} bf16 against fp32", None, "frames/s", note=note)


def codes(setting: Setting) -> Iterator[Row]:
    """The VQ-VAE's encoder at its released size, fp32: codes must not depend on the precision."""
    side = 320
    flops = counted_flops(vqvae_network().encode, torch.empty(1, 1, side, side, device="meta"))
    model = on_device(vqvae_network(), setting, torch.float32)
    for name, batch in (
        ("reference: one frame", 1),
        *((f"batch {b}", b) for b in (64, 256) if setting.real),
    ):
        maps = torch.rand(batch, 1, side, side, device=setting.device)
        row = Row("codes", f"VQ-VAE encoder, {name}", None, "frames/s")
        yield measured(row, setting, batch, inference(partial(model.encode, maps)), flops * batch)


def molmo_network(setting: Setting) -> MolmoActForActionReasoning:
    """Molmo-7B-D-0924's shapes on `meta`, or a sixteenth of its widths and two blocks."""
    fields: dict[str, Any] = {
        "hidden_size": 3584, "intermediate_size": 37888, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "layer_norm_eps": 1e-6, "rope_theta": 1e6, "qkv_bias": True,
        "norm_after": False, "attention_layer_norm": False,
    }  # fmt: skip
    if not setting.real:
        fields |= {
            "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 512,
            "vision_backbone": {"image_emb_dim": 32, "image_mlp_dim": 32, "image_num_heads": 2,
                                "image_num_key_value_heads": 2, "image_head_dim": 16, "image_num_layers": 10},
        }  # fmt: skip
    with torch.device("meta"):
        return MolmoActForActionReasoning(network_config(fields))


def molmo_inputs(
    model: MolmoActForActionReasoning, batch: int, device: torch.device
) -> dict[str, Tensor]:
    """A 256x256 frame: overview and one tile with equal pixels, 288 windows, 316 image tokens, 12 of text."""
    windows = np.arange(576).reshape(12, 2, 12, 2).transpose(0, 2, 1, 3).reshape(144, 4)
    ids = torch.randint(0, 500, (batch, 328))
    ids[:, 2:146] = ids[:, 160:304] = model.config.image_patch_id
    pixels = torch.rand(batch, 1, 576, 588).expand(-1, 2, -1, -1).contiguous()
    inputs = {
        "input_ids": ids,
        "images": pixels.to(model.dtype),
        "image_masks": torch.full((batch, 2, 576), 0.5),
        "pooled_patches_idx": torch.from_numpy(np.concatenate([windows, windows + 576])).expand(
            batch, -1, -1
        ),
    }
    return {name: tensor.to(device) for name, tensor in inputs.items()}


def pointer(setting: Setting) -> Iterator[Row]:
    """Molmo: a whole answer as the reference asks for it, then prefill and decoding by batch."""
    if setting.real:
        model = on_device(molmo_network(setting), setting, torch.float32)
        inputs = molmo_inputs(model, 1, setting.device)
        row = Row("pointer", f"reference: fp32, one frame, {LABEL_TOKENS} tokens", None, "frames/s")
        yield measured(row, setting, 1, inference(partial(whole_answer, model, inputs)))
        del model, inputs
    model = on_device(molmo_network(setting), setting, setting.low)
    for batch in setting.batches(1, 8, 32):
        inputs = molmo_inputs(model, batch, setting.device)
        row = Row("pointer", f"bf16, batch {batch}, {LABEL_TOKENS} tokens", None, "frames/s")
        yield measured(row, setting, batch, inference(partial(whole_answer, model, inputs)))
        row = replace(row, what=f"bf16 prefill, batch {batch}", unit="tokens/s")
        count = inputs["input_ids"].numel()
        yield measured(row, setting, count, inference(partial(model, **inputs, logits_to_keep=1)))


def whole_answer(model: MolmoActForActionReasoning, inputs: dict[str, Tensor]) -> None:
    """Prefill and greedy decoding of one answer per row."""
    cache = DynamicCache(config=model.config)
    step: dict[str, Any] = inputs
    for _ in range(LABEL_TOKENS):
        logits = model(**step, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        step = {"input_ids": logits.argmax(-1)[:, None]}


def training(setting: Setting) -> Iterator[Row]:
    """A MolmoAct 7B-D step on LIBERO-shaped samples, plain and ours, LoRA and full."""
    for tuning in ("lora", "full"):
        row = Row("training", f"{tuning}: weights", None, "samples/s")
        made, row = attempted(partial(trainable, tuning, setting), row, setting)
        if made is None:
            yield row
            continue
        model, optimizer = made
        for batch in setting.batches(8, 16, 32):
            plain = plain_batch(model.config, batch, setting.device)
            for name, inputs, savings in (
                ("reference: padded", plain, PLAIN),
                ("ours", our_batch(plain), Savings()),
            ):
                model.savings = savings
                flops = (
                    3
                    * analytic_7b()["plain" if savings is PLAIN else "ours"]["total"]
                    * 1e12
                    * batch
                )
                row = Row("training", f"{tuning}, {name}, batch {batch}", None, "samples/s")
                step = partial(training_step, model, optimizer, inputs, setting)
                yield measured(row, setting, batch, step, flops, optimizer.zero_grad)
        del made, model, optimizer, step
        free(setting)


def small_config() -> MolmoActConfig:
    """7B-D's crops with one narrow block of everything."""
    vit = MolmoActVitConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1,
        head_dim=16,
    )  # fmt: skip
    adapter = MolmoActAdapterConfig(
        vit_layers=(-1, -2), hidden_size=16, num_attention_heads=1, num_key_value_heads=1, head_dim=16,
        intermediate_size=16, text_hidden_size=32,
    )  # fmt: skip
    llm = MolmoActLlmConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, vocab_size=512,
    )  # fmt: skip
    return MolmoActConfig(vit, adapter, llm, image_patch_id=514)


def trainable(tuning: str, setting: Setting) -> tuple[Any, torch.optim.Optimizer]:
    """7B-D as training builds it, random weights."""
    from molmoact_train.families.molmoact.family import FAMILY
    from molmoact_train.lora import LoraSettings

    with torch.device("meta"):
        model = MolmoActForActionReasoning(released_config("D") if setting.real else small_config())
    return tuned(
        model, FAMILY, tuning, setting, LoraSettings(rank=32, alpha=16, dropout=0.0, base_bf16=True)
    )


def answer(setting: Setting) -> Iterator[Row]:
    """One MolmoAct answer of 8 x 7 actions for two pictures, constrained and free, on a small vocabulary."""
    from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
    from molmoact_train.families.molmoact.tiny import TinySize, tiny_config, tiny_processor

    size = TinySize()
    config = tiny_config(size)
    if setting.real:
        vit, llm = released_config("D").vit_config, released_config("D").llm_config
        llm.vocab_size, config.llm_config = size.vocabulary, llm
        adapter = released_config("D").adapter_config
        vit.image_default_input_size, vit.image_num_pos = (
            (size.image_size, size.image_size),
            (size.image_size // 14) ** 2,
        )
        config.vit_config, config.adapter_config = vit, adapter
    with torch.device("meta"):
        network = MolmoActForActionReasoning(config)
    model = on_device(network, setting, setting.low if setting.real else torch.float32)
    stats = {"libero": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}
    predictor = Predictor(model, tiny_processor(size), stats)
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    for name, constrained in (("constrained", True), ("free", False)):
        options = PredictOptions(constrained=constrained)
        done: list[Any] = []

        def ask(options: PredictOptions = options, done: list[Any] = done) -> None:
            done.append(predictor.predict([rgb, rgb], "close the lid", options=options))

        row = measured(Row("answer", f"8 steps, {name}", None, "answers/s"), setting, 1, ask)
        yield replace(
            row,
            note=f"{done[-1].num_tokens} tokens in {done[-1].forward_passes} passes"
            if done
            else "",
        )


SECTIONS: dict[str, Section] = {
    "depth": depth,
    "codes": codes,
    "pointer": pointer,
    "training": training,
    "answer": answer,
    "molmoact2": molmoact2,
}


def table(rows: list[Row]) -> Table:
    """One line per row; the last column compares with the reference's row of the same section and unit."""
    drawn = Table("section", "what", "rate", "MFU", "peak GiB", "x reference", "note")
    reference: dict[tuple[str, str], float] = {}
    for row in rows:
        key = (row.section, row.unit)
        if "reference" in row.what and row.rate:
            reference[key] = row.rate
        times = f"{row.rate / reference[key]:.1f}" if row.rate and key in reference else ""
        drawn.add_row(
            row.section, row.what, f"{row.rate:.3g} {row.unit}" if row.rate else "",
            f"{row.mfu:.0%}" if row.mfu is not None else "", f"{row.peak_gib:.1f}" if row.peak_gib is not None else "",
            times, row.note,
        )  # fmt: skip
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", choices=["real", "small"])
    parser.add_argument("--sections", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=BUDGET_S / 60)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shapes = arguments.shapes or ("real" if device.type == "cuda" else "small")
    torch.manual_seed(0)
    rows = run(
        SECTIONS, arguments.sections, Setting(device, shapes == "real"), arguments.minutes * 60
    )
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    result = {
        "device": name, "shapes": shapes, "torch": torch.__version__,
        "sample": {"prompt_tokens": PROMPT_TOKENS, "answer_tokens": ANSWER_TOKENS}, "rows": [asdict(r) for r in rows],
    }  # fmt: skip
    Console(width=160).print(table(rows))
    print(json.dumps(result))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    if any(row.failed for row in rows):
        sys.exit("Some rows failed; their notes say how.")


if __name__ == "__main__":
    main()
