"""The dataset card of a published output: what it is, where it came from, how good it is, who may use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molmoact_data import schema
from molmoact_data.exporters.labels_as_text import has_usable_trace
from molmoact_data.outputs.manifest import Manifest
from molmoact_data.outputs.output import Output
from molmoact_data.pictures.images import decode_image, encode_jpeg
from molmoact_data.pictures.overlay import draw_trace
from molmoact_data.teachers.knowledge import strange_teachers, strange_words

CARD_MARK = "<!-- written by molmoact publish -->"
SIZES = (
    *((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")),
    *((10**7, "1M<n<10M"), (10**8, "10M<n<100M"), (10**9, "100M<n<1B")),
)
"""Rows below which the Hub's size category is this one."""


def write_card(output: Output, *, picture: str | None) -> str:
    """The text of `README.md`; `picture` is the file name of the example picture, where there is one."""
    manifest = output.manifest
    sections = [
        _front_matter(manifest),
        f"# {escaped(output.name)}, labelled for Action Reasoning\n\n{CARD_MARK}\n",
        "One row is one frame: image, instruction, depth codes, gripper trace and action tokens, as numbers. "
        "Made with `molmoact preprocess`; load it with `datasets.load_dataset` (datasets >= 4.0, whose feature "
        "types the files name) and images decode. pyarrow, pandas and DuckDB read them in any version.\n",
        f"![an example frame with its trace]({picture})\n" if picture else "",
        _provenance(manifest),
        _sizes(manifest),
        _teachers(manifest),
        _quality(manifest.quality),
        _features(output),
    ]
    return "\n".join(section for section in sections if section)


def escaped(text: object) -> str:
    """Text that somebody else wrote, as plain text: nothing in it is Markdown or HTML, nor a second line."""
    line = " ".join(str(text).split())
    entities = {ord(c): f"&#{ord(c)};" for c in "&<>\"'`|[]*_\\#!~"}
    return line.translate(entities)


def _code(text: object) -> str:
    return f"<code>{escaped(text)}</code>"


def _front_matter(manifest: Manifest) -> str:
    frames = manifest.counts.frames
    size = next((name for limit, name in SIZES if frames < limit), "n>1B")
    lines = [
        "task_categories: [robotics]",
        "tags: [molmoact, action-reasoning, depth-tokens, vision-language-action]",
        f"size_categories: [{size}]",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        f"    path: {schema.DATA_DIR}/*.parquet",
    ]
    return "\n".join(["---", *lines, "---", ""])


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def _provenance(manifest: Manifest) -> str:
    dataset = manifest.dataset
    listed = "\n".join(f"- {_code(s.name)}, revision {_code(s.revision)}" for s in manifest.sources)
    fps = f", {dataset.fps:g} fps" if dataset.fps is not None else ""
    robot = f", robot {_code(dataset.robot_type)}" if dataset.robot_type is not None else ""
    return (
        f"## Provenance\n\n{listed}\n\nFormat {escaped(dataset.format)}{fps}{robot}. The source's own "
        "licence applies to images, actions and text; see there.\n\n"
        f"Configuration `{manifest.config_hash[:16]}`, action statistics "
        f"`{manifest.statistics_sha256[:16]}`; everything that decided a row is in `manifest.json`.\n"
    )


def _sizes(manifest: Manifest) -> str:
    counts = manifest.counts
    rejects = ", ".join(f"{reason}: {n}" for reason, n in manifest.rejects_by_reason.items())
    row = [
        "train",
        f"{counts.episodes:,}",
        f"{counts.frames:,}",
        counts.shards,
        f"{counts.bytes / 1e6:,.1f} MB",
        f"{counts.rejected_episodes} {f'({rejects})' if rejects else ''}".strip(),
    ]
    head = ("split", "episodes", "frames", "files", "size", "rejected episodes")
    return "## Sizes and splits\n\n" + _table(head, [row])


def _teachers(manifest: Manifest) -> str:
    """Every teacher with its licence; a non-commercial one is said in a sentence of its own."""
    cards = manifest.teachers
    if not cards:
        return ""
    shown = ("name", "revision", "licence")
    rows = [
        [escaped(cell) for cell in (role, *(card[k] for k in shown), _rest(card, shown))]
        for role, card in cards.items()
    ]
    text = "## Teachers\n\n" + _table(("role", "name", "revision", "licence", "settings"), rows)
    restricted = non_commercial(cards)
    if restricted:
        text += (
            f"\n**Non-commercial:** {', '.join(map(escaped, restricted))} may not be used commercially, and so may "
            "not the labels made with it. Depth-Anything-V2 Small is Apache-2.0, Base and larger are "
            "CC-BY-NC-4.0.\n"
        )
    strange = strange_teachers(cards, manifest.dataset.robot_type)
    if strange:
        text += f"\n**Not for training:** {strange_words(strange, 'this data')}.\n"
    return text


def _rest(card: Mapping[str, str], shown: Sequence[str]) -> str:
    return ", ".join(f"{k}: {v}" for k, v in card.items() if k not in shown)


def non_commercial(cards: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names of the teachers whose licence forbids commercial use."""
    return [
        card["name"]
        for card in cards.values()
        if "-NC" in card["licence"].upper() or "NON-COMMERCIAL" in card["licence"].upper()
    ]


def _quality(quality: Mapping[str, Any]) -> str:
    rows = [
        [name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else value]
        for name, value in quality.items()
        if isinstance(value, int | float) and name not in ("episodes", "frames")
    ]
    if not rows:
        return ""
    return "## Quality, measured without ground truth\n\n" + _table(("measure", "value"), rows)


def _features(output: Output) -> str:
    rows = [
        [f"`{field.name}`", f"`{field.type}`", schema.meaning(field.name)]
        for field in output.layout.arrow_schema()
    ]
    return "## Features\n\n" + _table(("column", "Arrow type", "meaning"), rows)


def example_picture(output: Output) -> bytes | None:
    """JPEG of the first frame with a usable trace, drawn; the first frame where there are no traces."""
    image = schema.image_column(output.layout.cameras[0])
    columns = [image]
    if output.layout.num_arms is not None:
        columns += [schema.TRACE, schema.TRACE_REJECT_REASON]
    for row in output.rows(columns):
        rgb = decode_image(row[image]["bytes"])
        if output.layout.num_arms is None:
            return encode_jpeg(rgb, 90)
        if has_usable_trace(row):
            return encode_jpeg(_with_traces(rgb, row[schema.TRACE]), 90)
    return None


def _with_traces(
    rgb: NDArray[np.uint8], arms: Sequence[Sequence[Sequence[int]]]
) -> NDArray[np.uint8]:
    for trace in arms:
        rgb = draw_trace(rgb, trace)
    return rgb
