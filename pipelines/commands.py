"""`molmoact preview | preprocess | evaluate-labels | retokenize | merge`: from demonstrations to shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from molmoact_data.console import (
    ConfigOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OutputArgument,
    OverwriteOption,
    ResumeOption,
    choice,
    conclude,
    emit_json,
    options_of,
    say,
)
from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.labels.pointing import Keyframes
from molmoact_data.teachers.choice import EMBEDDED, NONE, TeacherConfig
from pipelines.config import PRESETS, PreprocessConfig, preprocess_config

if TYPE_CHECKING:
    from pipelines.preprocess import Summary

DEMO_DATASET = Path(__file__).parent.parent / "examples" / "demo_dataset"
INSTALLED_DEMO_DATASET = Path(__file__).parent / "demo_dataset"
"""The same folder in an installed package; pyproject.toml puts it there."""

PresetOption = Annotated[
    str | None, choice("`embedded` (small teachers for rendered scenes) or `debug`.", list(PRESETS))
]
NOT_IN_A_PREVIEW = (
    "arms", "depth_buffer", "point_every", "keyframes", "line_length", "filter_traces", "process_actions",
    "action_bins", "action_chunk_size", "jpeg_quality", "batch_size", "gripper", "statistics", "frames_per_shard",
    "max_reject_fraction", "min_coverage", "point_cache", "dataset_name", "isolate_decoder", "runner", "workers",
    "beam_options",
)  # fmt: skip
"""What a few frames do not need."""
KEYFRAMES = get_args(Keyframes)
EVALUATED = {
    "depth": EMBEDDED, "vqvae": EMBEDDED, "pointer": EMBEDDED, "pointer_units": "pixels",
}  # fmt: skip
"""Teachers that `evaluate-labels` measures where it is told nothing else."""


StatisticsOption = Annotated[
    Path | None, typer.Option(help="dataset_statistics.json to tokenise with, frozen.")
]
NewFolderOption = Annotated[str, typer.Option("--output-path", help="Folder or URL to write.")]


@options_of(PreprocessConfig)
def preprocess(
    flags: Mapping[str, Any],
    *,
    preset: PresetOption = None,
    config: ConfigOption = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn demonstrations into Action Reasoning shards.

    Example: molmoact preprocess --dataset-path my/dataset --output-path out --camera primary=observation.images.front
    --vqvae released --point-every 10
    """
    settings = preprocess_config(with_preset(flags, preset), config)
    if dry_run:
        plan = plan_labels(settings, as_json=as_json)
        if as_json:
            emit_json(plan)
        return
    finish_preprocess(label(settings, resume=resume, overwrite=overwrite), as_json=as_json)


def label(settings: PreprocessConfig, *, resume: bool, overwrite: bool) -> Summary:
    """Run it; Beam and torch are imported now."""
    from pipelines.preprocess import preprocess as run

    return run(settings, resume=resume, overwrite=overwrite)


def plan_labels(settings: PreprocessConfig, *, as_json: bool) -> dict[str, Any]:
    """What a run would do, as a table for a person; returned for JSON."""
    from molmoact_data.console.tables import show_facts
    from pipelines.estimate import estimate, facts

    plan = estimate(settings)
    if not as_json:
        show_facts(f"Would write {settings.output_path}", facts(plan))
    return asdict(plan)


@options_of(PreprocessConfig, without=NOT_IN_A_PREVIEW)
def preview(
    flags: Mapping[str, Any],
    *,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to show.")] = 12,
    preset: PresetOption = None,
    config: ConfigOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show what the teachers see on a few frames, before a long `preprocess`; --output-path is a .png or .jpg.

    Per frame: the cameras with point and trace, the depth, and what its codes keep of it.

    Example: molmoact preview --dataset-path my/dataset --vqvae released --output-path preview.png
    """
    from molmoact_data.pictures.film import refuse_existing, write_picture
    from pipelines.preview import preview as run

    settings = preprocess_config(with_preset(flags, preset), config)
    path = refuse_existing(Path(settings.output_path), overwrite=overwrite)
    shown = run(settings, frames=frames)
    write_picture(path, shown.sheet)
    if as_json:
        result = {"output": str(path), "frames": shown.frames, "found": shown.found}
        emit_json({**result, "rejected": shown.rejected})
    else:
        conclude(
            f"{shown.frames} frames, gripper found in {shown.found}; see {path}",
            then=("molmoact", "preprocess", "--dataset-path", settings.dataset_path, "--output-path", "OUT", "..."),
        )  # fmt: skip


def demo_labels(output_path: Path, workers: int) -> PreprocessConfig:
    """The shipped episodes, with the embedded teachers."""
    dataset = DEMO_DATASET if DEMO_DATASET.is_dir() else INSTALLED_DEMO_DATASET
    flags = {
        "dataset_path": str(dataset),
        "output_path": str(output_path),
        "preset": "embedded",
        "workers": workers,
    }
    return preprocess_config(flags, None)


def with_preset(flags: Mapping[str, Any], preset: str | None) -> Mapping[str, Any]:
    """A preset that was typed wins over that of the YAML file."""
    return flags if preset is None else {**flags, "preset": preset}


def finish_preprocess(summary: Summary, *, as_json: bool) -> None:
    """Say what was done; a limit that the result breaks is exit code 3."""
    from molmoact_data.schema import REPORT_FILE

    if as_json:
        emit_json(asdict(summary))
    else:
        shards = f"{summary.shards} shard" + ("s" if summary.shards != 1 else "")
        conclude(
            f"{summary.frames} frames of {summary.episodes} episodes in {shards}; "
            f"look at {summary.output.rstrip('/')}/{REPORT_FILE}",
            then=("molmoact", "validate", summary.output),
        )
    if summary.exceeded is not None:
        raise LimitExceeded(summary.exceeded)


@options_of(TeacherConfig, without=("arms",), defaults=EVALUATED)
def evaluate_labels(
    flags: Mapping[str, Any],
    *,
    dataset_path: Annotated[
        str,
        typer.Option(help="Dataset with ground truth: rendered episodes, a folder or a Hub id."),
    ],
    output_path: Annotated[Path, typer.Option(help="Folder for labels.json and labels.html.")],
    point_every: Annotated[
        str, typer.Option(help="K of the tracking curve, comma separated.")
    ] = "1,2,4,8,16,32",
    keyframes: Annotated[
        str,
        choice("motion: the K above 1 are the longest gaps, as in `preprocess`.", KEYFRAMES),
    ] = "regular",
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
    episodes: Annotated[str | None, typer.Option(help="For example 0,1,5-9; default all.")] = None,
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
    from molmoact_data.label_quality.report import check_results, write_results
    from molmoact_data.sources.opening import open_source
    from molmoact_data.sources.selection import select_episodes
    from molmoact_data.teachers.choice import load_teachers
    from molmoact_data.teachers.knowledge import warn_of_strange_choices

    labels = build(TeacherConfig, {**EVALUATED, **flags})
    settings = build(
        EvaluationConfig,
        {
            "truth": {
                "camera": camera,
                "depth": truth_depth,
                "point": truth_point,
                "visible": truth_visible,
            },
            "prompt": labels.pointer_prompt,
            "depth_scaling": labels.depth_scaling,
            "point_every": parse_point_every(point_every),
            "keyframes": keyframes,
            "depth_every": depth_every,
            "batch_size": batch_size,
            "filter": {"outlier_share": outlier_share, "seed": seed},
        },
    )
    source = open_source(dataset_path)
    chosen = select_episodes(episodes, source.episodes)
    check_truth(source, settings.truth, with_depth=labels.depth != NONE)
    warn_of_strange_choices(labels, source.info)
    check_results(output_path, overwrite=overwrite)
    teachers = load_teachers(labels, device)
    teachers.check_source(source.info)
    for result in evaluate_labels(source, chosen, teachers, settings):
        say(f"{result.episodes} of {len(chosen)} episodes, {result.frames} frames")
    write_results(output_path, result)
    if as_json:
        emit_json(as_dict(result))
    else:
        conclude(
            f"{result.frames} frames of {result.episodes} episodes measured; see {output_path / 'labels.html'}"
        )


def retokenize(
    output: OutputArgument,
    *,
    output_path: NewFolderOption,
    statistics: StatisticsOption = None,
    statistics_key: Annotated[
        str | None, typer.Option(help="Which entry of the file, where it has several.")
    ] = None,
    action_bins: Annotated[int | None, typer.Option(help="Bins per action dimension.")] = None,
    action_chunk_size: Annotated[int | None, typer.Option(help="Steps per action chunk.")] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make new action tokens for an output without running a teacher or decoding an image.

    Example: molmoact retokenize out --statistics merged.json --output-path out-merged
    """
    from molmoact_data.files.storage import Storage
    from molmoact_data.outputs.output import Output
    from molmoact_data.statistics import read_statistics
    from pipelines.retokenize import RetokenizeConfig, retokenize as run

    frozen = read_statistics(statistics, statistics_key) if statistics else None
    if frozen is None and action_bins is None and action_chunk_size is None:
        raise UserError(
            "nothing to change: give --statistics, --action-bins or --action-chunk-size."
        )
    config = RetokenizeConfig(frozen, action_bins, action_chunk_size)
    source, target = Output.open(output), Storage(output_path)
    done = run(source, target, config, resume=resume, overwrite=overwrite)
    finish_copy(done, as_json=as_json)


def merge(
    outputs: Annotated[list[str], typer.Argument(help="Two or more outputs of equal settings.")],
    *,
    output_path: NewFolderOption,
    resume: ResumeOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Join outputs of equal settings and statistics into one; different depth recipes refuse.

    Example: molmoact merge out-a out-b --output-path out-both
    """
    from molmoact_data.files.storage import Storage
    from molmoact_data.outputs.output import Output
    from pipelines.merge import merge as run

    sources = [Output.open(path) for path in outputs]
    done = run(sources, Storage(output_path), resume=resume, overwrite=overwrite)
    finish_copy(done, as_json=as_json)


def finish_copy(done: Any, *, as_json: bool) -> None:
    """Say what a new output made from others holds."""
    if as_json:
        emit_json(asdict(done))
    else:
        conclude(
            f"{done.frames} frames in {done.output}", then=("molmoact", "validate", done.output)
        )
