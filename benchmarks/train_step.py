"""What the savings are worth: the plain padded path against ours, on the same samples, in one run.

    python benchmarks/train_step.py                      # CPU, a scaled-down 7B-D
    python benchmarks/train_step.py --device cuda --tokenizer DIR   # the real 7B-D size, random weights

Plain = what the reference runs: 18 crop slots and 2304 text positions whatever the sample needs, every crop
encoded, logits on every position. Ours = distinct crops, no padding beyond the batch's longest sample, logits
where there is loss. The losses of both must agree, else the comparison is void and the run fails. FLOPs are counted
by `torch.utils.flop_counter` on what really runs (it does not know the CPU's attention kernel: matrix products
only) and, for the true 7B-D, derived from its shapes (`molmoact_train/families/molmoact/flops.py`).

On CPU the model keeps 7B-D's proportions: widths / SCALE, layers 2 of 28 and 2 of 25, and the connector's and the
head's inner sizes reduced with the layers, so that each part's share of the linear work is the real one. Attention's
share grows when widths shrink, and with it the gain from shorter sequences: the analytic 7B-D number is the honest
prediction. Steps of both paths alternate, and CPU time (one thread) is measured beside wall time, because other
work on the machine stretches the latter.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_rows import BF16_PEAK
from torch.utils.flop_counter import FlopCounterMode

from molmoact_train.families.molmoact.flops import Work, forward_flops
from molmoact_train.families.molmoact.network import (
    MolmoActAdapterConfig,
    MolmoActConfig,
    MolmoActForActionReasoning,
    MolmoActLlmConfig,
    MolmoActVitConfig,
    Savings,
    released_config,
)
from molmoact_train.families.molmoact.network.crops import distinct_crops

PROMPT_TOKENS, ANSWER_TOKENS = 1004, 451
"""Mean LIBERO sample: 1 + 854 image + 149 text tokens, and the measured mean answer."""
PADDED_TOKENS, PADDED_CROPS = 2304, 18
REAL_CROPS, DISTINCT_CROPS, WINDOWS = 4, 2, 784
PLAIN = Savings(deduplicate_crops=False, loss_rows_only=False, loss_chunk_rows=None)


def scaled_config(scale: int) -> MolmoActConfig:
    """7B-D with widths / `scale` and two blocks each; head widths stay, so attention's inner shape does too."""
    real = released_config("D")
    vit_width, width = 1152 // scale, 3584 // scale
    layers_left = 2 / 28
    vit = MolmoActVitConfig(
        hidden_size=vit_width, intermediate_size=4304 // scale, num_hidden_layers=2,
        num_attention_heads=16 // scale, num_key_value_heads=16 // scale, head_dim=72,
    )  # fmt: skip
    adapter = MolmoActAdapterConfig(
        vit_layers=(-1, -2), hidden_size=vit_width, num_attention_heads=16 // scale,
        num_key_value_heads=16 // scale, head_dim=72,
        intermediate_size=int(18944 / scale * layers_left), text_hidden_size=width,
    )  # fmt: skip
    vocabulary = int(152064 / scale * layers_left)
    llm = MolmoActLlmConfig(
        hidden_size=width, intermediate_size=18944 // scale, num_hidden_layers=2,
        num_attention_heads=28 // scale, num_key_value_heads=max(1, 4 // scale), head_dim=128,
        vocab_size=vocabulary, rope_theta=real.llm_config.rope_theta,
    )  # fmt: skip
    return MolmoActConfig(vit, adapter, llm, image_patch_id=vocabulary + 2)


def windows_of_a_sample() -> torch.Tensor:
    """[784, 4]: two images, overview and tile each, 14 x 14 windows over 27 x 27 patches."""
    patches = np.full((28, 28), -1)
    patches[:27, :27] = np.arange(729).reshape(27, 27)
    grid = patches.reshape(14, 2, 14, 2).transpose(0, 2, 1, 3).reshape(196, 4)
    return torch.tensor(np.concatenate([np.where(grid >= 0, grid + 729 * c, -1) for c in range(4)]))


def plain_batch(
    config: MolmoActConfig, batch_size: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """A LIBERO-shaped batch as the reference collates it: everything padded to its maximum with -1."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.llm_config.vocab_size
    length = PROMPT_TOKENS + ANSWER_TOKENS
    ids = torch.full((batch_size, PADDED_TOKENS), -1)
    ids[:, :length] = torch.randint(0, vocabulary, (batch_size, length), generator=generator)
    ids[:, 1 : 1 + WINDOWS] = config.image_patch_id
    targets = torch.full_like(ids, -1)
    targets[:, : length - 1] = ids[:, 1:length]
    targets[:, length - 1] = 0
    weights = torch.zeros(batch_size, PADDED_TOKENS)
    weights[:, PROMPT_TOKENS:length] = 1.0
    images = torch.full((batch_size, PADDED_CROPS, 729, 588), -1.0)
    pixels = torch.rand((batch_size, DISTINCT_CROPS, 729, 588), generator=generator) * 2 - 1
    images[:, :REAL_CROPS] = pixels.repeat_interleave(2, dim=1)
    windows = windows_of_a_sample().expand(batch_size, -1, -1).contiguous()
    batch = {
        "input_ids": ids, "images": images, "pooled_patches_idx": windows, "targets": targets,
        "loss_weights": weights,
    }  # fmt: skip
    return {name: tensor.to(device) for name, tensor in batch.items()}


def our_batch(plain: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same samples as our collator hands them over: trimmed, and each crop once."""
    length = PROMPT_TOKENS + ANSWER_TOKENS
    crops = distinct_crops(plain["images"][:, :REAL_CROPS].contiguous())
    trimmed = {k: plain[k][:, :length] for k in ("input_ids", "targets", "loss_weights")}
    return trimmed | {
        "images": crops.crops_UPC, "crop_slots": crops.slot_BT,
        "pooled_patches_idx": plain["pooled_patches_idx"],
    }  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One path; a step is forward and backward of the batch."""

    name: str
    wall_s: float
    """Median."""
    cpu_s: float
    """Median CPU time of the process."""
    counted_tflop: float
    """Matrix products of one step."""
    loss: float


def measure(
    model: MolmoActForActionReasoning,
    paths: dict[str, tuple[dict[str, torch.Tensor], Savings]],
    repeats: int,
) -> list[Measured]:
    """Steps of all paths in turn; the first of each is counted and not timed."""

    def step(name: str) -> float:
        batch, model.savings = paths[name]
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        return loss.item()

    counted = {}
    for name in paths:
        with FlopCounterMode(display=False) as counter:
            loss = step(name)
        counted[name] = (counter.get_total_flops() / 1e12, loss)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name in paths:
            times[name].append(timed(partial(step, name)))
    measured = []
    for name, (tflop, loss) in counted.items():
        wall_s, cpu_s = (statistics.median(column) for column in zip(*times[name], strict=True))
        measured.append(Measured(name, wall_s, cpu_s, tflop, loss))
    return measured


def timed(step: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def analytic_7b() -> dict[str, Any]:
    """Forward TFLOP per LIBERO sample of the true 7B-D, both paths."""
    config = released_config("D")
    works = {
        "plain": Work(PADDED_CROPS, WINDOWS, PADDED_TOKENS, PADDED_TOKENS),
        "ours": Work(DISTINCT_CROPS, WINDOWS // 2, PROMPT_TOKENS + ANSWER_TOKENS, ANSWER_TOKENS),
    }
    found: dict[str, Any] = {}
    for name, work in works.items():
        flops = forward_flops(config, work)
        found[name] = {part: value / 1e12 for part, value in vars(flops).items()}
        found[name]["total"] = flops.total / 1e12
    found["ratio"] = found["plain"]["total"] / found["ours"]["total"]
    return found


def run_cpu(arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    config = scaled_config(arguments.scale)
    model = MolmoActForActionReasoning(config).train()
    plain = plain_batch(config, arguments.batch_size, torch.device("cpu"))
    chosen = {"plain": (plain, PLAIN), "ours": (our_batch(plain), Savings())}
    paths = measure(model, chosen, arguments.repeats)
    check_same_loss(paths, tolerance=1e-4)
    return {
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)",
        "model": f"7B-D proportions, widths / {arguments.scale}, "
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, fp32",
        "batch_size": arguments.batch_size,
        "paths": [vars(p) for p in paths],
        "samples_per_s": {p.name: arguments.batch_size / p.cpu_s for p in paths},
        "speedup_cpu_time": paths[0].cpu_s / paths[1].cpu_s,
        "speedup_wall_time": paths[0].wall_s / paths[1].wall_s,
        "counted_ratio": paths[0].counted_tflop / paths[1].counted_tflop,
        "analytic_7b_d_forward_tflop_per_sample": analytic_7b(),
        "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def check_same_loss(paths: Sequence[Measured], *, tolerance: float) -> None:
    plain, ours = (p.loss for p in paths)
    if abs(plain - ours) > tolerance * abs(plain):
        raise SystemExit(f"the two paths are not the same mathematics: loss {plain} and {ours}")


WOULD_MEASURE = """\
No CUDA device here. With one, this command builds the real 7B-D (8.12 B parameters, random weights) and measures:
  - plain against ours with AdamW at batch 8, 16 and 32, for LoRA r=32 on every linear layer (bf16 base) and for full
    fine-tuning (fp32 weights, bf16 autocast), both with activation checkpointing: samples/s, tokens/s, MFU against
    989 TFLOP/s, peak memory. What does not fit is reported as such (full: 8.12 B x 16 bytes = 121 GiB before
    activations);
  - the latency of one 8-step answer (about 451 tokens), constrained and free, with --tokenizer DIR (Qwen2.5)."""


def run_gpu(arguments: argparse.Namespace) -> dict[str, Any]:
    """The real size. Peak memory includes weights, gradients, moments and activations of a whole optimiser step."""
    rows = []
    for tuning in ("lora", "full"):
        for batch_size in (8, 16, 32):
            rows.append(gpu_row(tuning, batch_size, arguments.repeats))
            torch.cuda.empty_cache()
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(), "rows": rows}
    if arguments.tokenizer is not None:
        result["latency"] = gpu_latency(arguments.tokenizer)
    return result


def gpu_row(tuning: str, batch_size: int, repeats: int) -> dict[str, Any]:
    """One setting, both paths; out of memory is a result."""
    row: dict[str, Any] = {"tuning": tuning, "batch_size": batch_size}
    try:
        model, optimizer = gpu_model(tuning)
        plain = plain_batch(model.config, batch_size, torch.device("cuda"))
        for name, batch, savings in (
            ("ours", our_batch(plain), Savings()),
            ("plain", plain, PLAIN),
        ):
            row[name] = gpu_path(name, model, optimizer, batch, savings, repeats)
    except torch.cuda.OutOfMemoryError:
        row["out_of_memory"] = True
    return row


def gpu_model(tuning: str) -> tuple[MolmoActForActionReasoning, torch.optim.Optimizer]:
    """Built as training builds it, weights random."""
    from molmoact_train.lora import LoraSettings, add_adapters, initialise
    from molmoact_train.parallel import checkpoint_activations

    with torch.device("meta"):
        model = MolmoActForActionReasoning(released_config("D"))
    if tuning == "lora":
        add_adapters(model, LoraSettings(rank=32, alpha=16, dropout=0.0, base_bf16=True))
    checkpoint_activations(model)
    model.to_empty(device="cuda").train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    if tuning == "lora":
        initialise(model, 32, 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-5, fused=True)


def gpu_path(
    name: str,
    model: MolmoActForActionReasoning,
    optimizer: torch.optim.Optimizer,
    batch: dict[str, torch.Tensor],
    savings: Savings,
    repeats: int,
) -> dict[str, Any]:
    model.savings = savings
    torch.cuda.reset_peak_memory_stats()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()

    for _ in range(2):
        step()
    seconds = statistics.median(timed(step)[0] for _ in range(repeats))
    size = len(batch["input_ids"])
    peak = BF16_PEAK.get(torch.cuda.get_device_name())
    needed = 3 * analytic_7b()[name]["total"] * 1e12 * size  # model FLOPs: no recomputation
    return {
        "samples_per_s": size / seconds,
        "tokens_per_s": size * (PROMPT_TOKENS + ANSWER_TOKENS) / seconds,
        "mfu": needed / seconds / peak if peak else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def gpu_latency(tokenizer: Path) -> dict[str, Any]:
    """Seconds of one answer of 8 x 7 actions for two pictures; the weights are random, the work is the real one."""
    from molmoact_train.families.molmoact.predictor import PredictOptions, Predictor
    from molmoact_train.families.molmoact.processor import MolmoActProcessor

    processor = MolmoActProcessor.from_pretrained(tokenizer)
    with torch.device("meta"):
        model = MolmoActForActionReasoning(released_config("D")).to(torch.bfloat16)
    model.to_empty(device="cuda")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    stats = {"libero": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}
    predictor = Predictor(model, processor, stats)
    rgb = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    found: dict[str, Any] = {}
    for constrained in (True, False):
        options = PredictOptions(constrained=constrained)
        predictor.predict([rgb, rgb], "warm up", options=options)
        start = time.perf_counter()
        answer = predictor.predict([rgb, rgb], "close the lid", options=options)
        found["constrained" if constrained else "free"] = {
            "seconds": time.perf_counter() - start,
            "tokens": answer.num_tokens,
            "forward_passes": answer.forward_passes,
            "by_stage": answer.seconds,
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--scale", type=int, choices=[2, 4], default=4, help="divisor of the widths"
    )
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, help="Qwen2.5 tokenizer folder, for the latency")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(WOULD_MEASURE)
        return
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    result = run_cpu(arguments) if arguments.device == "cpu" else run_gpu(arguments)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
