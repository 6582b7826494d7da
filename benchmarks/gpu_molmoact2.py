"""MolmoAct2's rows of `gpu.py`: training steps and answers at the published size, on made samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_rows import (
    Row,
    Setting,
    attempted,
    free,
    inference,
    measured,
    on_device,
    training_step,
    tuned,
)
from molmoact2_samples import DIMS, REAL_DIMS, made_config, make_samples

from molmoact_train.families.molmoact2 import think
from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.family import FAMILY
from molmoact_train.families.molmoact2.images import CutImages
from molmoact_train.families.molmoact2.network import MolmoAct2, MolmoAct2Config
from molmoact_train.families.molmoact2.network.flow import euler
from molmoact_train.families.molmoact2.processor import Prompt
from molmoact_train.families.molmoact2.samples import collate
from molmoact_train.lora import LoraSettings

SECTION = "molmoact2"
DRAWS = 4
"""Flow draws of a chunk in training."""
ROW_TOKENS = 2100
"""Of a packed row."""
EULER_STEPS = 10
CODES = 100


def molmoact2(setting: Setting) -> Iterator[Row]:
    """Training as one sample per row and packed, LoRA and full; then answers by batch, with and without depth."""
    config = made_config(real=setting.real)
    for tuning in ("lora", "full"):
        yield from training(config, tuning, setting)
    with torch.device("meta"):
        model = MolmoAct2(config)
    if setting.real:
        whole = on_device(model, setting, torch.float32)
        yield from answers(whole, "reference: fp32", (1,), setting)
        del whole
        free(setting)
        with torch.device("meta"):
            model = MolmoAct2(config)
    low = on_device(model, setting, setting.low)
    yield from answers(low, "bf16", setting.batches(1, 8), setting)
    yield from depth_answers(low, setting)


def sample_lengths(count: int, setting: Setting) -> list[int]:
    """Tokens of samples with two pictures; unequal, as instructions and states are."""
    own = (560, 480, 700, 520) if setting.real else (145, 117, 190, 132)
    return [own[number % len(own)] for number in range(count)]


def training(config: MolmoAct2Config, tuning: str, setting: Setting) -> Iterator[Row]:
    """A step on the text loss and the flow loss."""
    row = Row(SECTION, f"{tuning}: weights", None, "samples/s")
    lora = LoraSettings(rank=64, alpha=16, dropout=0.0, base_bf16=True)

    def make() -> tuple[Any, torch.optim.Optimizer]:
        with torch.device("meta"):
            model = MolmoAct2(config)
        return tuned(model, FAMILY, tuning, setting, lora)

    made, row = attempted(make, row, setting)
    if made is None:
        yield row
        return
    model, optimizer = made
    for batch in setting.batches(8, 16, 32):
        samples = make_samples(config, sample_lengths(batch, setting), DRAWS)
        for name, row_tokens in (("reference: a row each", None), ("packed rows", ROW_TOKENS)):
            batched = collate(samples, seq_len=row_tokens, text_first=True)
            tensors, chunks = batched.on(setting.device)
            inputs = {**tensors, "chunks": chunks}
            row = Row(SECTION, f"{tuning}, {name}, batch {batch}", None, "samples/s")
            step = partial(training_step, model, optimizer, inputs, setting)
            yield measured(row, setting, batch, step, release=optimizer.zero_grad)


def prompts(config: MolmoAct2Config, batch: int, setting: Setting) -> list[Prompt]:
    """What an answer is asked for with: two pictures and the text before the answer."""
    found = []
    for sample in make_samples(config, sample_lengths(batch, setting), 1):
        asked = sample.input_tokens[: int(np.argmax(sample.loss_weights > 0)) + 1]
        found.append(Prompt(asked, CutImages(sample.crops_UPC, sample.windows_V4, ()), ""))
    return found


def answers(
    model: MolmoAct2, name: str, batches: tuple[int, ...], setting: Setting
) -> Iterator[Row]:
    """A continuous chunk: the prompt read once, then ten Euler steps of the expert."""
    for batch in batches:
        asked = prompts(model.config, batch, setting)
        dims = torch.arange(DIMS, device=setting.device).expand(batch, -1) < REAL_DIMS
        noise = torch.randn(batch, model.config.max_action_horizon, DIMS, device=setting.device)

        def answer(
            asked: list[Prompt] = asked, noise: torch.Tensor = noise, dims: torch.Tensor = dims
        ) -> torch.Tensor:
            decoding = Decoding(model, asked)
            decoding.feed([[]] * len(asked))
            return euler(model.expert, decoding.expert_context(), noise, EULER_STEPS, dims)

        row = Row(SECTION, f"{name}, {EULER_STEPS} steps, batch {batch}", None, "answers/s")
        yield measured(row, setting, batch, inference(answer))


def depth_answers(model: MolmoAct2, setting: Setting) -> Iterator[Row]:
    """The depth that a Think model writes before it acts, by the share of cells that changed."""
    depth = model.config.depth_tokens
    assert depth is not None
    (asked,) = prompts(model.config, 1, setting)
    for share in (1.0, 0.3):
        updates = (np.arange(CODES) < CODES * share)[None]
        passes: list[int] = []

        def write(updates: Any = updates, passes: list[int] = passes) -> None:
            decoding = Decoding(model, [asked])
            think.write_depth(decoding, depth, updates, np.zeros((1, CODES), dtype=np.int64))
            passes.append(decoding.forward_passes)

        what = f"{CODES} depth codes, {share:.0%} of the cells changed"
        row = Row(SECTION, what, None, "depth answers/s")
        row = measured(row, setting, 1, inference(write))
        yield with_passes(row, passes[-1]) if passes else row


def with_passes(row: Row, passes: int) -> Row:
    """The row with how many passes of the decoder it took."""
    note = f"{passes} passes of the decoder"
    return replace(row, note=note if row.rate else f"{row.note}; {note}")
