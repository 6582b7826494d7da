"""Format name -> exporter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.folders import new_folder
from molmoact_data.outputs.output import Output
from molmoact_data.teachers.knowledge import warn_of_strange_labels

Format = Literal["reference", "conversations", "lerobot", "molmoact2-depth"]
FORMATS: tuple[str, ...] = get_args(Format)


@dataclass(frozen=True)
class ExportOptions:
    """What some of the formats need to know."""

    source: str | None = None
    """Dataset that the output was made from; `molmoact2-depth` compares its frames and links its videos."""
    single_action: bool = False
    """`conversations`: the first action instead of the chunk, as in the pre-training rows."""
    cosine_threshold: float | None = None
    """`molmoact2-depth`: compare the frames anew, with new codes for a cell less similar than this to the frame
    before. None = the buffer that the output has, else 0.996."""


@dataclass(frozen=True)
class Exported:
    """What `--json` prints."""

    format: str
    output: str
    rows: int
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows that the format cannot hold."""


def export(
    root: str, target: Path, format_name: str, options: ExportOptions, *, overwrite: bool
) -> Exported:
    """Write `target` from the output at `root`. Raises `UserError` before anything is written."""
    if format_name not in FORMATS:
        raise unknown_name("export format", format_name, FORMATS)
    output = Output.open(root)
    warn_of_strange_labels(output.manifest)
    inputs = [] if output.storage.is_remote else [Path(root)]
    with new_folder(target, overwrite=overwrite, inputs=inputs) as folder:
        match format_name:
            case "reference":
                from molmoact_data.exporters.reference import export_reference

                rows, left_out = export_reference(output, folder)
            case "conversations":
                from molmoact_data.exporters.conversations import export_conversations

                rows, left_out = export_conversations(
                    output, folder, single_action=options.single_action
                )
            case "lerobot":
                from molmoact_data.exporters.lerobot.export import export_lerobot

                rows, left_out = export_lerobot(output, folder), {}
            case "molmoact2-depth":
                from molmoact_data.exporters.molmoact2_depth import export_depth_companion

                rows = export_depth_companion(
                    output, _source(options), folder, options.cosine_threshold
                )
                left_out = {}
            case _:
                raise AssertionError(format_name)
    return Exported(format_name, str(target), rows, left_out)


def _source(options: ExportOptions) -> str:
    if options.source is None:
        raise UserError(
            "--format molmoact2-depth needs --dataset-path, the dataset that the output was made from: its "
            "frames are compared and its videos linked."
        )
    return options.source
