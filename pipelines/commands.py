"""`molmoact preprocess | preview | demo`: demonstrations in, shards or a sheet of what they will hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from molmoact_data.console import (
    ConfigOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    ResumeOption,
    emit_json,
    given,
    say,
)
from molmoact_data.errors import LimitExceeded, UserError
from pipelines import command_options as options

if TYPE_CHECKING:
    from pipelines.preprocess import Summary

DEMO_DATASET = Path(__file__).parent.parent / "examples" / "demo_dataset"
INSTALLED_DEMO_DATASET = Path(__file__).parent / "demo_dataset"
"""The same folder in an installed package; pyproject.toml puts it there."""


def preprocess(
    context: typer.Context,
    *,
    dataset_path: Annotated[str | None, options.DATASET] = None,
    output_path: Annotated[str | None, typer.Option(help="Folder or URL for the shards.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="`embedded` (small teachers for rendered scenes) or `debug`.")
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help="ROLE=KEY, repeatable; the first is labelled.")
    ] = None,
    depth: Annotated[str | None, options.DEPTH] = None,
    depth_encoder: Annotated[str | None, options.DEPTH_ENCODER] = None,
    depth_checkpoint: Annotated[str | None, options.DEPTH_CHECKPOINT] = None,
    vqvae: Annotated[
        str | None, typer.Option(help="VQ-VAE for the depth codes, for example vae-final.pt.")
    ] = None,
    depth_recipe: Annotated[
        str | None, typer.Option(help="checkpoint (right range) or reference (public code).")
    ] = None,
    pointer: Annotated[str | None, options.POINTER] = None,
    pointer_checkpoint: Annotated[str | None, options.POINTER_CHECKPOINT] = None,
    pointer_url: Annotated[str | None, options.POINTER_URL] = None,
    pointer_column: Annotated[str | None, options.POINTER_COLUMN] = None,
    pointer_units: Annotated[str | None, options.POINTER_UNITS] = None,
    pointer_calibration: Annotated[str | None, options.POINTER_CALIBRATION] = None,
    arms: Annotated[int | None, typer.Option(help="Grippers per frame, left to right.")] = None,
    point_cache: Annotated[
        str | None, typer.Option(help="Folder where answers of a slow pointer are kept.")
    ] = None,
    pointer_prompt: Annotated[str | None, options.POINTER_PROMPT] = None,
    point_every: Annotated[
        int | None, typer.Option(help="Point at every K-th frame, track in between.")
    ] = None,
    line_length: Annotated[int | None, typer.Option(help="Points per trace, at most 5.")] = None,
    filter_traces: Annotated[
        bool | None,
        typer.Option("--filter-traces/--no-filter-traces", help="Drop outlying points."),
    ] = None,
    process_actions: Annotated[
        bool | None,
        typer.Option("--process-actions/--no-process-actions", help="Write action columns."),
    ] = None,
    action_bins: Annotated[int | None, typer.Option(help="Bins per action dimension.")] = None,
    action_chunk_size: Annotated[int | None, typer.Option(help="Steps per action chunk.")] = None,
    gripper: Annotated[
        list[str] | None,
        typer.Option(
            help="DIM=keep or DIM=invert, repeatable: raw gripper values, 1 - a if inverted."
        ),
    ] = None,
    statistics: Annotated[
        str | None, typer.Option(help="Use this dataset_statistics.json, frozen.")
    ] = None,
    episodes: Annotated[str | None, options.EPISODES] = None,
    revision: Annotated[str | None, options.REVISION] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Frames labelled at once; decides the memory.")
    ] = None,
    jpeg_quality: Annotated[
        int | None, typer.Option(help="1..100, for frames that come from video.")
    ] = None,
    frames_per_shard: Annotated[
        int | None, typer.Option(help="Frames after which a shard is closed.")
    ] = None,
    max_reject_fraction: Annotated[
        float | None, typer.Option(help="Share of rejected episodes that is no failure.")
    ] = None,
    min_coverage: Annotated[
        float | None, typer.Option(help="Share of frames that must have a usable trace.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Local worker processes.")] = None,
    runner: Annotated[
        str | None,
        typer.Option(help="local, FlinkRunner, PortableRunner, DataflowRunner, SparkRunner."),
    ] = None,
    beam_option: Annotated[
        list[str] | None, typer.Option(help="Passed to Beam, repeatable: --flink_master=host:8081.")
    ] = None,
    device: Annotated[str | None, options.DEVICE] = None,
    isolate_decoder: Annotated[
        bool | None,
        typer.Option(
            "--isolate-decoder/--no-isolate-decoder",
            help="Decode video in a child process that may crash.",
        ),
    ] = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn demonstrations into Action Reasoning shards.

    Example: molmoact preprocess --dataset-path my/dataset --output-path out --camera primary=observation.images.front
    --vqvae vae-final.pt
    """
    from pipelines.estimate import estimate
    from pipelines.options import preprocess_config
    from pipelines.preprocess import preprocess as run

    flags = given(context)
    flags.update({"cameras": pairs(camera, "--camera")} if camera else {})
    flags.update({"gripper": pairs(gripper, "--gripper")} if gripper else {})
    settings = preprocess_config(flags, config)
    if dry_run:
        plan = asdict(estimate(settings))
        emit_json(plan) if as_json else say(json.dumps(plan, indent=2))
        return
    finish_preprocess(run(settings, resume=resume, overwrite=overwrite), as_json=as_json)


def preview(
    context: typer.Context,
    *,
    dataset_path: Annotated[str | None, options.DATASET] = None,
    output_path: Annotated[
        str | None, typer.Option(help="The sheet to write: .png or .jpg.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to show.")] = 12,
    preset: Annotated[str | None, typer.Option(help="As for `preprocess`.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="ROLE=KEY, as for `preprocess`.")] = None,
    depth: Annotated[str | None, typer.Option(help="Depth teacher.")] = None,
    depth_encoder: Annotated[str | None, typer.Option(help="Depth-Anything-V2 size.")] = None,
    depth_checkpoint: Annotated[
        str | None, typer.Option(help="Weights of the depth model.")
    ] = None,
    vqvae: Annotated[str | None, typer.Option(help="VQ-VAE for the depth codes.")] = None,
    depth_recipe: Annotated[str | None, typer.Option(help="checkpoint or reference.")] = None,
    pointer: Annotated[str | None, typer.Option(help="Gripper pointer.")] = None,
    pointer_checkpoint: Annotated[str | None, typer.Option(help="Pointing model.")] = None,
    pointer_url: Annotated[str | None, typer.Option(help="Endpoint of the server pointer.")] = None,
    pointer_column: Annotated[str | None, typer.Option(help="Column of recorded points.")] = None,
    pointer_units: Annotated[str | None, typer.Option(help="Its unit.")] = None,
    pointer_calibration: Annotated[str | None, typer.Option(help="Calibration YAML.")] = None,
    pointer_prompt: Annotated[str | None, typer.Option(help="What the model is asked.")] = None,
    episodes: Annotated[str | None, options.EPISODES] = None,
    revision: Annotated[str | None, options.REVISION] = None,
    device: Annotated[str | None, options.DEVICE] = None,
    config: ConfigOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the teachers see on a few frames, before a long `preprocess`.

    Per frame: the cameras with point and trace, the depth, and what its codes keep of it.

    Example: molmoact preview --dataset-path my/dataset --vqvae vae-final.pt --output-path preview.png
    """
    from molmoact_data.pictures.film import refuse_existing, write_picture
    from pipelines.options import preprocess_config
    from pipelines.preview import preview as run

    flags = {k: v for k, v in given(context).items() if k != "frames"}
    flags.update({"cameras": pairs(camera, "--camera")} if camera else {})
    settings = preprocess_config(flags, config)
    path = refuse_existing(Path(settings.output_path), overwrite=overwrite)
    shown = run(settings, frames=frames)
    write_picture(path, shown.sheet)
    if as_json:
        result = {"output": str(path), "frames": shown.frames, "found": shown.found}
        emit_json({**result, "rejected": shown.rejected})
    else:
        say(f"{shown.frames} frames, gripper found in {shown.found}; see {path}")


def demo(
    *,
    output_path: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("out/demo"),
    workers: Annotated[int, typer.Option(help="Local worker processes.")] = 1,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline on the shipped episodes, with the embedded teachers, without network.

    Example: molmoact demo --output-path out/demo
    """
    from pipelines.options import preprocess_config
    from pipelines.preprocess import preprocess as run

    dataset = DEMO_DATASET if DEMO_DATASET.is_dir() else INSTALLED_DEMO_DATASET
    flags = {
        "dataset_path": str(dataset),
        "output_path": str(output_path),
        "preset": "embedded",
        "workers": workers,
    }
    finish_preprocess(
        run(preprocess_config(flags, None), resume=False, overwrite=overwrite), as_json=as_json
    )


def finish_preprocess(summary: Summary, *, as_json: bool) -> None:
    """Say what was done; a limit that the result breaks is exit code 3."""
    from molmoact_data.schema import REPORT_FILE

    if as_json:
        emit_json(asdict(summary))
    else:
        shards = f"{summary.shards} shard" + ("s" if summary.shards != 1 else "")
        say(
            f"{summary.frames} frames of {summary.episodes} episodes in {shards}; "
            f"look at {summary.output.rstrip('/')}/{REPORT_FILE}"
        )
    if summary.exceeded is not None:
        raise LimitExceeded(summary.exceeded)


def pairs(values: Sequence[str], flag: str) -> dict[str, str]:
    """`ROLE=KEY` flags as a mapping, in the order given."""
    parsed: dict[str, str] = {}
    for value in values:
        name, equals, rest = value.partition("=")
        if not equals or not name or not rest:
            raise UserError(
                f"{flag} wants ROLE=KEY, for example primary=observation.images.front; got {value!r}."
            )
        if name in parsed:
            raise UserError(f"{flag} names the role {name!r} twice.")
        parsed[name] = rest
    return parsed
