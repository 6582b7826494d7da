"""`molmoact vqvae train | eval | encode | decode | convert`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from molmoact_data.config import build
from molmoact_data.console import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    ResumeOption,
    choice,
    conclude,
    emit_json,
    options_of,
    say,
)
from molmoact_data.errors import UserError
from molmoact_data.labels.depth_scaling import DepthScaling
from vqvae.config import PRESETS, EvalConfig, TrainConfig

CheckpointOption = Annotated[
    Path,
    typer.Option(
        help="vae-final.pt, .safetensors, run folder of `vqvae train`, `released` or `embedded`."
    ),
]
RangeOption = Annotated[
    str | None, typer.Option(help="signed or unit, instead of the checkpoint's own range.")
]
ResizeOption = Annotated[
    str | None, typer.Option(help="nearest or bilinear, instead of the checkpoint's own filter.")
]


# The settings of a run that have flags; the others are for YAML.
SETTINGS = (
    "data", "depth_encoder", "depth_kind", "scaling", "hold_out_fraction", "codebook_size", "batch_size",
    "lr", "epochs", "max_steps", "eval_every", "save_every", "seed", "precision", "device", "wandb_project",
)  # fmt: skip


@options_of(TrainConfig, only=SETTINGS)
def train(
    flags: Mapping[str, Any],
    *,
    output_path: Annotated[Path, typer.Option(help="Folder of the run.")],
    preset: Annotated[str, choice("Settings to start from.", list(PRESETS))] = "released",
    config: ConfigOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a depth codebook; on several GPUs under torchrun.

    Example: molmoact vqvae train --data out --depth-encoder depth-anything-v2 --output-path runs/vqvae
    """
    from molmoact_data.console.tables import show_facts
    from vqvae import operations

    settings = operations.train_config(
        output_path, preset=preset, config=config, flags=dict(flags), resume=resume
    )
    if dry_run:
        plan = operations.plan(settings)
        if as_json:
            emit_json(plan)
        else:
            show_facts(f"Would train in {output_path}", operations.facts(plan))
        return
    operations.check_training(settings, output_path, resume=resume, overwrite=overwrite)
    from vqvae.training.train import train

    result = train(settings, output_path, resume=resume, overwrite=overwrite)
    if as_json:
        emit_json(asdict(result))
    if result.stopped_by_signal:
        say(f"stopped at step {result.step} of {result.num_steps}; continue with --resume")
        raise typer.Exit(result.exit_code)
    if not as_json:
        places = [word for place in settings.data for word in ("--data", place)] or [
            "--data",
            "DATA",
        ]
        conclude(
            f"finished after step {result.step}; the codebook is {output_path}",
            then=("molmoact", "vqvae", "eval", "--checkpoint", output_path, *places),
        )


@options_of(EvalConfig)
def evaluate(
    flags: Mapping[str, Any],
    *,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a codebook: reconstruction, boundaries, codes used, codes that flicker.

    Example: molmoact vqvae eval --checkpoint runs/vqvae --data simulator:200:test --min-codes 100
    """
    from molmoact_data.files.folders import check_new_file
    from molmoact_data.teachers.codebook import codebook_path
    from vqvae.depth.places import check_place

    if not flags.get("data"):
        raise UserError(
            "no data to measure on; give --data FOLDER (or procedural:N, simulator:N:test)."
        )
    settings = build(EvalConfig, flags)
    check_new_file(settings.output_path, overwrite=overwrite)
    for place in settings.data:
        check_place(place)
    codebook_path(settings.checkpoint)
    from vqvae import evaluate as measuring

    report = measuring.measure(settings)
    if as_json:
        emit_json(report)
    else:
        typer.echo(measuring.as_table(report))
        found = report[measuring.ALL]
        conclude(
            f"{found['codes_used']} codes used, error {found['mae']:.4f} of the range",
            then=("molmoact", "preprocess", "--vqvae", settings.checkpoint, "..."),
        )
    measuring.check_min_codes(report, settings.min_codes)


def encode(
    *,
    checkpoint: CheckpointOption,
    input_path: Annotated[
        Path, typer.Option("--input-path", help="npy uint8 [N,H,W] or [H,W], or a depth image.")
    ],
    output_path: Annotated[
        Path, typer.Option("--output-path", help=".npy (int16 [N,100]) or .txt (depth tokens).")
    ],
    depth_recipe: Annotated[
        str, typer.Option(help="checkpoint (right range), released or reference (public code).")
    ] = "checkpoint",
    depth_scaling: Annotated[
        str,
        choice(
            "Range of the 8 bits where the maps are not 8 bits yet: each map's own, or, for the frames of one episode, "
            "steady.",
            get_args(DepthScaling),
        ),
    ] = "image",
    input_range: RangeOption = None,
    resize: ResizeOption = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Depth maps to codes.

    Example: molmoact vqvae encode --checkpoint released --input-path depth.npy --output-path codes.npy
    """
    from vqvae import operations

    result = operations.encode(
        checkpoint, input_path, output_path,
        recipe=depth_recipe, scaling=depth_scaling, input_range=input_range, resize=resize,
        device=device, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        emit_json(result)
    else:
        conclude(
            f"{result['maps']} maps coded with {result['codes_used']} different codes, see {output_path}",
            then=("molmoact", "vqvae", "decode", "--checkpoint", checkpoint, "--input-path", output_path,
                  "--output-path", "DEPTH.png"),
        )  # fmt: skip


def decode(
    *,
    checkpoint: CheckpointOption,
    output_path: Annotated[
        Path, typer.Option("--output-path", help=".png (8 bits) or .npy (float32 0..1).")
    ],
    tokens: Annotated[
        str | None,
        typer.Option(help="Text with <DEPTH_START>...<DEPTH_END>, or integers."),
    ] = None,
    input_path: Annotated[
        Path | None,
        typer.Option("--input-path", help="Codes as .npy or text, instead of --tokens."),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Codes to depth maps.

    Example: molmoact vqvae decode --checkpoint released --input-path codes.npy --output-path depth.png
    """
    from vqvae import operations

    result = operations.decode(
        checkpoint,
        output_path,
        tokens=tokens,
        source=input_path,
        device=device,
        overwrite=overwrite,
    )
    if as_json:
        emit_json(result)
    else:
        conclude(f"{result['maps']} maps decoded, see {output_path}")


def convert(
    *,
    input_path: Annotated[Path, typer.Option("--input-path", help="Checkpoint of either layout.")],
    output_path: Annotated[
        Path,
        typer.Option("--output-path", help=".safetensors (ours) or .pt (the released layout)."),
    ],
    input_range: RangeOption = None,
    resize: ResizeOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert between the released vae-final.pt and our layout; the codes stay the same.

    Example: molmoact vqvae convert --input-path vae-final.pt --output-path vae.safetensors
    """
    from vqvae import operations

    result = operations.convert(
        input_path, output_path, input_range=input_range, resize=resize, overwrite=overwrite
    )
    if as_json:
        emit_json(result)
    else:
        conclude(
            f"wrote {output_path}",
            then=("molmoact", "preprocess", "--vqvae", output_path, "..."),
        )
