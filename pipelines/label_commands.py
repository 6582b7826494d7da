"""`molmoact evaluate-labels`: teachers and tracking against episodes that know the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.console import DeviceOption, JsonOption, OverwriteOption, emit_json, say
from pipelines import command_options as options

TEACHER_FLAGS = (
    "depth", "depth_encoder", "depth_checkpoint", "vqvae", "pointer", "pointer_checkpoint", "pointer_url",
    "pointer_column", "pointer_units", "pointer_calibration", "pointer_prompt",
)  # fmt: skip
"""Flags that are fields of `LabelConfig`."""
TRUTH_FLAGS = {
    "camera": "camera",
    "depth": "truth_depth",
    "point": "truth_point",
    "visible": "truth_visible",
}
"""Field of `TruthColumns` -> its flag."""


def evaluate_labels(
    context: typer.Context,
    *,
    dataset_path: Annotated[
        str,
        typer.Option(help="Dataset with ground truth: rendered episodes, a folder or a Hub id."),
    ],
    output_path: Annotated[Path, typer.Option(help="Folder for labels.json and labels.html.")],
    depth: Annotated[str, options.DEPTH] = "embedded",
    depth_encoder: Annotated[str, options.DEPTH_ENCODER] = "vitb",
    depth_checkpoint: Annotated[str | None, options.DEPTH_CHECKPOINT] = None,
    vqvae: Annotated[str, typer.Option(help="VQ-VAE for the depth codes.")] = "embedded",
    pointer: Annotated[str, options.POINTER] = "embedded",
    pointer_checkpoint: Annotated[str | None, options.POINTER_CHECKPOINT] = None,
    pointer_url: Annotated[str | None, options.POINTER_URL] = None,
    pointer_column: Annotated[str | None, options.POINTER_COLUMN] = None,
    pointer_units: Annotated[str, options.POINTER_UNITS] = "pixels",
    pointer_calibration: Annotated[str | None, options.POINTER_CALIBRATION] = None,
    pointer_prompt: Annotated[str, options.POINTER_PROMPT] = "point to the robot gripper",
    point_every: Annotated[
        str, typer.Option(help="K of the tracking curve, comma separated.")
    ] = "1,2,4,8,16,32",
    depth_every: Annotated[int, typer.Option(help="Score depth on every n-th frame.")] = 4,
    outlier_share: Annotated[
        float, typer.Option(help="Share of points replaced to try the trace filter.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of that replacement.")] = 0,
    camera: Annotated[
        str, typer.Option(help="Colour camera that is labelled.")
    ] = "observation.images.front",
    truth_depth: Annotated[
        str, typer.Option(help="Its true depth, 16 bits in steps of 0.5 mm.")
    ] = "observation.depth.front",
    truth_point: Annotated[
        str, typer.Option(help="Column with the true pixel of the grip point.")
    ] = "observation.gripper_pixel",
    truth_visible: Annotated[
        str, typer.Option(help="Column that says whether it is to be seen.")
    ] = "observation.gripper_visible",
    episodes: Annotated[str | None, options.EPISODES] = None,
    batch_size: Annotated[int, typer.Option(help="Frames labelled at once.")] = 32,
    device: DeviceOption = "auto",
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure teachers, tracking, the trace filter and the depth codes against ground truth.

    Example: molmoact evaluate-labels --dataset-path heldout --output-path quality --point-every 1,10
    """
    from molmoact_data.config import as_dict, build
    from molmoact_data.label_quality.evaluate import (
        EvaluationConfig,
        check_truth,
        evaluate_labels,
        parse_point_every,
    )
    from molmoact_data.label_quality.report import prepare_folder, write_results
    from molmoact_data.sources.opening import open_source
    from molmoact_data.sources.selection import select_episodes
    from pipelines.job import NONE, LabelConfig
    from pipelines.teachers import load_teachers

    flags = context.params
    settings = build(
        EvaluationConfig,
        {
            "truth": {name: flags[flag] for name, flag in TRUTH_FLAGS.items()},
            "prompt": pointer_prompt,
            "point_every": parse_point_every(point_every),
            "depth_every": depth_every,
            "batch_size": batch_size,
            "filter": {"outlier_share": outlier_share, "seed": seed},
        },
    )
    labels = build(LabelConfig, {name: flags[name] for name in TEACHER_FLAGS})
    source = open_source(dataset_path)
    chosen = select_episodes(episodes, source.episodes)
    check_truth(source, settings.truth, with_depth=labels.depth != NONE)
    teachers = load_teachers(labels, device)
    teachers.check_source(source.info)
    prepare_folder(output_path, overwrite=overwrite)
    for result in evaluate_labels(source, chosen, teachers, settings):
        say(f"{result.episodes} of {len(chosen)} episodes, {result.frames} frames")
    write_results(output_path, result)
    if as_json:
        emit_json(as_dict(result))
    else:
        say(f"see {output_path / 'labels.html'}")
