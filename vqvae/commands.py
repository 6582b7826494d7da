"""`molmoact vqvae train | eval | encode | decode | convert`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.console import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    ResumeOption,
    emit_json,
    given,
    say,
)

CheckpointOption = Annotated[
    Path,
    typer.Option(help="vae-final.pt, a .safetensors of ours, or a run folder of `vqvae train`."),
]
DepthDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Output of `preprocess`, LeRobot dataset, folder of PNG/npy depth, procedural:N or "
        "simulator:N[:test]; repeatable."
    ),
]
DepthModelOption = Annotated[
    str | None,
    typer.Option(
        help="Depth model for data that holds images only: depth-anything-v2 or embedded."
    ),
]
DepthKindOption = Annotated[
    str | None,
    typer.Option(help="inverse (larger = nearer), metric (distance, 0 = missing) or auto."),
]
ScalingOption = Annotated[
    str | None, typer.Option(help="8-bit range per image (as released) or per episode.")
]
RangeOption = Annotated[
    str | None, typer.Option(help="signed or unit, instead of the checkpoint's own range.")
]
ResizeOption = Annotated[
    str | None, typer.Option(help="nearest or bilinear, instead of the checkpoint's own filter.")
]


def train(
    context: typer.Context,
    *,
    output_path: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: DepthDataOption = None,
    preset: Annotated[
        str, typer.Option(help="released, fine (20x20), residual (2x100), embedded (small), debug.")
    ] = "released",
    batch_size: Annotated[
        int | None, typer.Option(help="Maps per step over all processes [64].")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate [1e-3].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data [20].")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop earlier than --epochs.")] = None,
    codebook_size: Annotated[int | None, typer.Option(help="Codes per level [128].")] = None,
    grid_size: Annotated[int | None, typer.Option(help="Codes per side [10].")] = None,
    num_code_levels: Annotated[
        int | None, typer.Option(help="Residual levels; each adds grid x grid tokens [1].")
    ] = None,
    depth_encoder: DepthModelOption = None,
    depth_kind: DepthKindOption = None,
    scaling: ScalingOption = None,
    hold_out_fraction: Annotated[
        float | None, typer.Option(help="Share of episodes only measured on [0.1].")
    ] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between evaluations [200].")] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between saved states [200].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and revived codes [0].")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto (bf16 on GPUs), fp32, bf16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.")] = None,
    wandb_project: Annotated[
        str | None, typer.Option(help="Also log to this Weights & Biases project.")
    ] = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a depth codebook; on several GPUs under torchrun.

    Example: molmoact vqvae train --data out --depth-encoder depth-anything-v2 --output-path runs/vqvae
    """
    from vqvae import operations

    own = {"output_path", "preset", "config", "resume", "overwrite", "dry_run", "as_json"}
    flags = {name: value for name, value in given(context).items() if name not in own}
    settings = operations.train_config(
        output_path, preset=preset, config=config, flags=flags, resume=resume
    )
    if dry_run:
        plan = operations.plan(settings)
        emit_json(plan) if as_json else say(json.dumps(plan, indent=2))
        return
    from vqvae.train import train

    result = train(settings, output_path, resume=resume, overwrite=overwrite)
    if as_json:
        emit_json(asdict(result))
    if result.stopped_by_signal:
        say(f"stopped at step {result.step} of {result.num_steps}; continue with --resume")
        raise typer.Exit(143)


def evaluate(
    *,
    checkpoint: CheckpointOption,
    data: DepthDataOption = None,
    depth_encoder: DepthModelOption = None,
    depth_kind: DepthKindOption = None,
    scaling: ScalingOption = None,
    max_episodes: Annotated[int | None, typer.Option(help="Per place.")] = None,
    min_codes: Annotated[
        int | None, typer.Option(help="Exit with 3 if fewer codes are used.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="PNG of inputs, reconstructions, errors.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a codebook: reconstruction, boundaries, codes used, codes that flicker.

    Example: molmoact vqvae eval --checkpoint runs/vqvae --data simulator:200:test --min-codes 100
    """
    from vqvae import measure, operations

    flags = {
        "depth_encoder": depth_encoder, "depth_kind": depth_kind, "scaling": scaling,
        "max_episodes": max_episodes, "min_codes": min_codes, "sheet": sheet, "device": device,
    }  # fmt: skip
    settings = operations.eval_config(checkpoint, data or [], flags)
    report = measure.measure(settings)
    emit_json(report) if as_json else say(measure.as_table(report))
    measure.check_min_codes(report, min_codes)


def encode(
    *,
    checkpoint: CheckpointOption,
    input_path: Annotated[
        Path, typer.Option("--input", help="npy uint8 [N,H,W] or [H,W], or a depth image.")
    ],
    output_path: Annotated[
        Path, typer.Option("--output", help=".npy (int16 [N,100]) or .txt (depth tokens).")
    ],
    depth_recipe: Annotated[
        str, typer.Option(help="checkpoint (right range), released or reference (public code).")
    ] = "checkpoint",
    input_range: RangeOption = None,
    resize: ResizeOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Depth maps to codes.

    Example: molmoact vqvae encode --checkpoint vae-final.pt --input depth.npy --output codes.npy
    """
    from vqvae import operations

    result = operations.encode(
        checkpoint, input_path, output_path,
        recipe=depth_recipe, input_range=input_range, resize=resize, device=device,
    )  # fmt: skip
    emit_json(result) if as_json else say(f"{result['maps']} maps coded, see {output_path}")


def decode(
    *,
    checkpoint: CheckpointOption,
    output_path: Annotated[
        Path, typer.Option("--output", help=".png (8 bits) or .npy (float32 0..1).")
    ],
    tokens: Annotated[
        str | None,
        typer.Option(help="Text with <DEPTH_START>...<DEPTH_END>, or integers."),
    ] = None,
    input_path: Annotated[
        Path | None, typer.Option("--input", help="Codes as .npy or text, instead of --tokens.")
    ] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Codes to depth maps.

    Example: molmoact vqvae decode --checkpoint vae-final.pt --tokens "<DEPTH_START>..." --output depth.png
    """
    from vqvae import operations

    result = operations.decode(
        checkpoint, output_path, tokens=tokens, source=input_path, device=device
    )
    emit_json(result) if as_json else say(f"{result['maps']} maps decoded, see {output_path}")


def convert(
    *,
    input_path: Annotated[Path, typer.Option("--input", help="Checkpoint of either layout.")],
    output_path: Annotated[
        Path, typer.Option("--output", help=".safetensors (ours) or .pt (the released layout).")
    ],
    input_range: RangeOption = None,
    resize: ResizeOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert between the released vae-final.pt and our layout; the codes stay the same.

    Example: molmoact vqvae convert --input vae-final.pt --output vae.safetensors
    """
    from vqvae import operations

    result = operations.convert(
        input_path, output_path, input_range=input_range, resize=resize, overwrite=overwrite
    )
    emit_json(result) if as_json else say(f"wrote {output_path}")
