"""Rows of `gpu.py`: one measurement each, or why there is none; one that fails stops neither the others nor the run."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from molmoact_train.lora import LoraSettings, add_adapters, initialise
from molmoact_train.parallel import checkpoint_activations

T = TypeVar("T")

BF16_PEAK = {
    "NVIDIA A10": 125e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
}
"""Dense bf16 peak by the name that CUDA tells, FLOP/s, from the makers' data sheets. Whole names: a slice of a card
(MIG) has another one, and gets no share of a peak that is not its own."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    section: str
    what: str
    rate: float | None
    """Per second; None = not measured, `note` says why."""
    unit: str
    mfu: float | None = None
    """Share of the bf16 peak that the network's own arithmetic is."""
    peak_gib: float | None = None
    note: str = ""
    failed: bool = False
    """Not measured for another reason than memory or time."""


@dataclass(frozen=True)
class Setting:
    """Where and how large."""

    device: torch.device
    real: bool
    """Published sizes; otherwise small ones that a CPU can run."""

    @property
    def low(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def bf16_peak(self) -> float | None:
        """Of the card, FLOP/s; None where it is not known."""
        if self.device.type != "cuda":
            return None
        return BF16_PEAK.get(torch.cuda.get_device_name(self.device))

    def batches(self, *real: int) -> tuple[int, ...]:
        """Batch sizes; small shapes try one."""
        return real if self.real else (1,)


def seconds(step: Callable[[], object], setting: Setting, *, at_least_s: float = 1.0) -> float:
    """Median of one call, after two (small shapes: one) to warm up."""

    def once() -> float:
        began = time.perf_counter()
        step()
        if setting.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    if setting.real:
        once()
    times: list[float] = []
    while sum(times) < (at_least_s if setting.real else 0.0) or len(times) < (
        3 if setting.real else 1
    ):
        times.append(once())
    return statistics.median(times)


def measured(
    row: Row,
    setting: Setting,
    count: float,
    step: Callable[[], object],
    flops: float = 0.0,
    release: Callable[[], object] = lambda: None,
) -> Row:
    """`row` with its rate (`count` per call), peak memory and share of the card's peak, or why there is none.

    `release` frees what a step leaves behind, gradients above all, whether it went well or not: the next row must not
    be the one that does not fit.
    """
    cuda = setting.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    took = peak = None
    try:
        took = seconds(step, setting)
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    except Exception as error:  # noqa: BLE001  it becomes the row
        row = not_measured(row, error)
    # Outside of `except`: there, the traceback still holds the activations of the step that failed.
    release()
    free(setting)
    if took is None:
        return row
    mfu = flops / took / setting.bf16_peak if flops and setting.bf16_peak else None
    return replace(row, rate=count / took, mfu=mfu, peak_gib=peak)


def attempted(make: Callable[[], T], row: Row, setting: Setting) -> tuple[T | None, Row]:
    """What `make` makes, or None and why not."""
    made: T | None = None
    try:
        made = make()
    except Exception as error:  # noqa: BLE001  it becomes the row
        row = not_measured(row, error)
    free(setting)
    return made, row


def not_measured(row: Row, error: Exception) -> Row:
    """Out of memory is a result; anything else is named and fails the run at its end."""
    if isinstance(error, torch.OutOfMemoryError):
        return replace(row, note="does not fit the memory")
    line = next(iter(str(error).splitlines()), "")
    return replace(row, note=f"failed: {type(error).__name__}: {line}", failed=True)


def free(setting: Setting) -> None:
    """Give what nobody holds back to the device."""
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def on_device(model: nn.Module, setting: Setting, dtype: torch.dtype | None) -> Any:
    """A network from `meta` with random weights; without `dtype` each keeps its own."""
    model = (model if dtype is None else model.to(dtype)).to_empty(device=setting.device)
    generator = torch.Generator(setting.device).manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02, generator=generator)
    return model.eval()


def tuned(
    model: nn.Module, family: Any, tuning: str, setting: Setting, lora: LoraSettings
) -> tuple[Any, torch.optim.Optimizer]:
    """A network from `meta` as training builds it: adapters on bf16 (`lora`), or every weight in fp32 (`full`)."""
    if tuning == "lora":
        add_adapters(model, lora, family.trains_beside_adapters)
    checkpoint_activations(model, family.units(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    model = on_device(model, setting, torch.float32 if tuning == "full" else None).train()
    if tuning == "lora":
        initialise(model, lora.rank, 0)
    parameters = [
        p.requires_grad_(n in trained) for n, p in model.named_parameters() if n in trained
    ]
    return model, torch.optim.AdamW(parameters, lr=1e-5, fused=setting.device.type == "cuda")


def training_step(
    model: Any, optimizer: torch.optim.Optimizer, inputs: Mapping[str, Any], setting: Setting
) -> None:
    """Forward in bf16, backward, one step of the optimizer."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(setting.device.type, dtype=torch.bfloat16):
        loss = model(**inputs).loss
    loss.backward()
    optimizer.step()


def inference(step: Callable[[], object]) -> Callable[[], object]:
    """`step` without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return step()

    return run


Section = Callable[[Setting], Iterator[Row]]


def run(
    sections: Mapping[str, Section], names: Sequence[str], setting: Setting, budget_s: float
) -> list[Row]:
    """All rows of the named sections; once the time is over, one that says so for every section that is left."""
    began, rows = time.monotonic(), []
    for number, name in enumerate(names):
        for row in guarded(name, sections[name](setting)):
            rows.append(row)
            if time.monotonic() - began > budget_s:
                note = "not run: the time was over"
                return [
                    *rows,
                    *(Row(left, "", None, "", note=note) for left in names[number + 1 :]),
                ]
        free(setting)
    return rows


def guarded(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of a section; what goes wrong between them (weights that do not fit) ends it with a row."""
    try:
        yield from rows
    except Exception as error:  # noqa: BLE001  it becomes the row
        yield not_measured(Row(name, "the rest of the section", None, ""), error)
