"""`molmoact retokenize | merge`: new outputs out of finished ones, without a teacher."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from molmoact_data.console import (
    JsonOption,
    OutputArgument,
    OverwriteOption,
    ResumeOption,
    emit_json,
    say,
)
from molmoact_data.errors import UserError

StatisticsOption = Annotated[
    Path | None, typer.Option(help="dataset_statistics.json to tokenise with, frozen.")
]
NewFolderOption = Annotated[str, typer.Option("--output-path", help="Folder or URL to write.")]


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
    emit_json(asdict(done)) if as_json else say(f"{done.frames} frames in {done.output}")


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
    emit_json(asdict(done)) if as_json else say(f"{done.frames} frames in {done.output}")
