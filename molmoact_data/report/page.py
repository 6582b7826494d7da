"""`report.html`: one self-contained page about an output. No clock, no randomness, nothing from outside."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from molmoact_data import schema
from molmoact_data.files.storage import Storage
from molmoact_data.labels.quality import QualitySums, merge
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import open_parquet
from molmoact_data.pages.page import Card, percent, render_page
from molmoact_data.pictures.images import decode_image
from molmoact_data.report import sections
from molmoact_data.report.curves import gripper_curves
from molmoact_data.report.data import FrameRef, ReportData, read_report_data
from molmoact_data.report.depth import depth_strips
from molmoact_data.report.findings import findings, overall
from molmoact_data.report.pictures import heat_picture, read_pictures

MAX_LISTED_REJECTS = 50
FOOTER = (
    f"Made by molmoact from {schema.MANIFEST_FILE} and the shards beside it. Pictures are a fixed function of the "
    "content: the same output gives the same page."
)


def write_report(output_dir: str | Path, manifest: Manifest | None = None) -> None:
    """Write `report.html` beside the shards of an output (local folder or URL).

    `manifest` is given while the output is being finished, because its file is written last.
    """
    storage = Storage(str(output_dir))
    storage.write_bytes(schema.REPORT_FILE, render(storage, manifest).encode())


def render(storage: Storage, manifest: Manifest | None = None) -> str:
    """The page as text; equal outputs give equal text."""
    data = read_report_data(storage, manifest)
    manifest = data.manifest
    refs = {*data.surest, *data.worst, *data.plain, *(r for g in data.rejected.values() for r in g)}
    pictures = read_pictures(storage, sorted(refs), manifest.labelled_camera)
    sums = merge(QualitySums.from_json(shard.quality) for shard in manifest.shards)
    found = findings(data)
    return render_page(
        __package__,
        "report.html",
        kind="Label report",
        heading=manifest.dataset.name,
        facts=_facts(manifest),
        cards=_cards(manifest),
        footer=FOOTER,
        manifest=manifest,
        verdict=overall(found),
        findings=found,
        coverage=sections.coverage(manifest.quality, sums),
        heat=_heat(data, storage),
        strips=sections.strips(data),
        trace_quality=sections.trace_quality(manifest.quality),
        galleries=sections.galleries(data, pictures),
        without_trace=sections.without_trace(data, pictures),
        depth=depth_strips(storage, manifest, data.depth),
        codes=sections.codes(manifest.quality, sums),
        actions=sections.actions(data),
        gripper=gripper_curves(storage, data),
        rejects=data.rejects,
        max_listed_rejects=MAX_LISTED_REJECTS,
        rejects_file=schema.REJECTS_FILE,
        teachers=sections.teachers(manifest),
        configuration=json.dumps(manifest.fingerprint, indent=2, sort_keys=True),
    )


def _facts(manifest: Manifest) -> dict[str, str]:
    dataset = manifest.dataset
    return {
        "revision": dataset.revision[:19],
        "format": dataset.format,
        "robot": dataset.robot_type or "not named",
        "labelled camera": manifest.cameras[manifest.labelled_camera],
        "schema": manifest.schema_version,
    }


def _cards(manifest: Manifest) -> list[Card]:
    """The first numbers of the page."""
    dataset, counts, quality = manifest.dataset, manifest.counts, manifest.quality
    cards = [Card(f"{counts.episodes:,}", "episodes"), Card(f"{counts.frames:,}", "frames")]
    if dataset.fps:
        cards.append(
            Card(f"{counts.frames / dataset.fps / 60:,.1f}", f"at {dataset.fps:g} fps", "min")
        )
    size, unit = _size(counts.bytes)
    shards = f"in {counts.shards:,} shard" + ("s" if counts.shards != 1 else "")
    cards.append(Card(size, shards, unit))
    if quality["trace_coverage"] is not None:
        cards.append(Card(percent(quality["trace_coverage"]), "frames with a trace"))
        cards.append(Card(f"{quality['mean_trace_quality']:.2f}", "mean trace quality, 0 to 1"))
    if quality["codes_used"] is not None:
        used, size_of_codebook = quality["codes_used"], quality["codebook_size"]
        cards.append(Card(f"{used}", "depth codes used", f"of {size_of_codebook}"))
    cards.append(Card(f"{counts.rejected_episodes:,}", "rejected episodes"))
    return cards


def _size(num_bytes: float) -> tuple[str, str]:
    """Three digits and their unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g}", unit
        num_bytes /= 1000
    return f"{num_bytes:.3g}", "TB"


def _heat(data: ReportData, storage: Storage) -> str:
    """Data address of the picture; empty where there are no points."""
    refs = data.surest or data.worst or [r for group in data.rejected.values() for r in group]
    if data.heat_YX is None or not data.heat_YX.any() or not refs:
        return ""
    return heat_picture(data.heat_YX, _first_frame(storage, refs[0], data.manifest.labelled_camera))


def _first_frame(storage: Storage, ref: FrameRef, camera: str) -> np.ndarray:
    name = schema.image_column(camera)
    with open_parquet(storage, ref.shard) as file:
        table = file.read_row_group(ref.row_group, columns=[name])
    return decode_image(table[name][ref.row].as_py()["bytes"])
