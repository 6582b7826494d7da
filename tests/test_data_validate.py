"""`validate` passes a good output and names each of many planted defects."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.outputs.shards import file_sha256
from molmoact_data.validate import Finding, validate
from molmoact_data.validate.run import CheckedSample

Plant = Callable[[Path], None]


def manifest_of(out: Path) -> dict[str, Any]:
    return json.loads((out / schema.MANIFEST_FILE).read_text())


def rewrite_manifest(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = manifest_of(out)
    change(manifest)
    (out / schema.MANIFEST_FILE).write_text(json.dumps(manifest))


def first_shard(out: Path) -> Path:
    return out / manifest_of(out)["shards"][0]["name"]


def rewrite_shard(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Plant a defect in the rows, with the file's hash and size made right again."""
    path = first_shard(out)
    pq.write_table(change(pq.read_table(path)), path)

    def forge(manifest: dict[str, Any]) -> None:
        shard = manifest["shards"][0]
        manifest["counts"]["bytes"] += path.stat().st_size - shard["num_bytes"]
        shard.update(sha256=file_sha256(path), num_bytes=path.stat().st_size)

    rewrite_manifest(out, forge)


def set_value(name: str, row: int, value: Any) -> Plant:
    """Replace one value of one column."""

    def plant(out: Path) -> None:
        def change(table: pa.Table) -> pa.Table:
            values = table[name].to_pylist()
            values[row] = value(values[row]) if callable(value) else value
            array = pa.array(values, table.schema.field(name).type)
            index = table.column_names.index(name)
            return table.set_column(index, table.schema.field(name), array)

        rewrite_shard(out, change)

    return plant


def in_manifest(change: Callable[[dict[str, Any]], None]) -> Plant:
    return lambda out: rewrite_manifest(out, change)


def in_shard(change: Callable[[pa.Table], pa.Table]) -> Plant:
    return lambda out: rewrite_shard(out, change)


def replaced(items: list[Any], index: int, value: Any) -> list[Any]:
    return [value if i == index else item for i, item in enumerate(items)]


def small_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def flip_a_byte(out: Path) -> None:
    path = first_shard(out)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def truncate(out: Path) -> None:
    path = first_shard(out)
    path.write_bytes(path.read_bytes()[:-100])


def edit_statistics(out: Path) -> None:
    path = out / schema.STATISTICS_FILE
    entry = json.loads(path.read_text())
    entry["dots"]["action"]["q99"][0] += 1.0
    path.write_text(json.dumps(entry))


def with_forged_statistics_hash(out: Path) -> None:
    """Other statistics, and a manifest that agrees with them: only the bins can tell."""
    from molmoact_data.outputs.output import Output

    edit_statistics(out)
    statistics = Output.read(out).statistics
    assert statistics is not None
    rewrite_manifest(out, lambda m: m.update(statistics_sha256=statistics.sha256()))


def damage_statistics(out: Path) -> None:
    path = out / schema.STATISTICS_FILE
    entry = json.loads(path.read_text())
    del entry["dots"]["action"]["q99"][0]
    path.write_text(json.dumps(entry))


def repeat_episode(table: pa.Table) -> pa.Table:
    """The second episode of the shard gets the number of one in another shard."""
    column = table[schema.EPISODE_INDEX].to_numpy().copy()
    column[column == column.max()] = 3
    index = table.column_names.index(schema.EPISODE_INDEX)
    return table.set_column(index, table.schema.field(index), pa.array(column))


def drop_metadata(table: pa.Table) -> pa.Table:
    metadata = dict(table.schema.metadata)
    metadata[schema.META_CONFIG_HASH] = b"0" * 64
    return table.replace_schema_metadata(metadata)


IMAGE = schema.image_column("primary")

PLANTED: dict[str, tuple[Plant, Finding]] = {
    "manifest cut off": (
        lambda out: (out / schema.MANIFEST_FILE).write_text('{"schema_ver'),
        Finding.MANIFEST_UNREADABLE,
    ),
    "frames miscounted": (
        in_manifest(lambda m: m["counts"].update(frames=7)),
        Finding.MANIFEST_COUNTS_DIFFER,
    ),
    "another schema version": (
        in_manifest(lambda m: m.update(schema_version="0.9")),
        Finding.SCHEMA_VERSION_DIFFERS,
    ),
    "fingerprint edited": (
        in_manifest(lambda m: m["fingerprint"]["labels"].update(jpeg_quality=1)),
        Finding.CONFIG_HASH_DIFFERS,
    ),
    "statistics deleted": (
        lambda out: (out / schema.STATISTICS_FILE).unlink(),
        Finding.STATISTICS_MISSING,
    ),
    "a measure edited": (
        in_manifest(lambda m: m["quality"].update(trace_coverage=0.5)),
        Finding.MANIFEST_COUNTS_DIFFER,
    ),
    "a measure of one shard edited": (
        in_manifest(lambda m: m["shards"][0]["quality"].update(jumps=99)),
        Finding.MANIFEST_COUNTS_DIFFER,
    ),
    "codes of another codebook": (
        in_manifest(lambda m: m["layout"].update(codebook_size=200)),
        Finding.SCHEMA_DIFFERS,
    ),
    "arms that are not there": (
        in_manifest(lambda m: m["layout"].update(num_arms=2)),
        Finding.SCHEMA_DIFFERS,
    ),
    "a camera that is not in the layout": (
        in_manifest(lambda m: m["cameras"].update(third="x")),
        Finding.MANIFEST_UNREADABLE,
    ),
    "statistics edited": (edit_statistics, Finding.STATISTICS_HASH_DIFFERS),
    "statistics damaged": (damage_statistics, Finding.STATISTICS_UNREADABLE),
    "statistics of another dataset": (with_forged_statistics_hash, Finding.ACTION_BINS_DISAGREE),
    "a reject nobody counted": (
        lambda out: (out / schema.REJECTS_FILE).write_text(
            '{"dataset": "dots", "episode_index": 1, "reason": "rows_empty", "detail": "x"}\n'
        ),
        Finding.REJECTS_DIFFER,
    ),
    "temporary file left": (
        lambda out: (out / schema.DATA_DIR / ".x.parquet.tmp-host-1-2").touch(),
        Finding.TEMPORARY_FILE_LEFT,
    ),
    "shard deleted": (lambda out: first_shard(out).unlink(), Finding.SHARD_MISSING),
    "foreign shard": (
        lambda out: (out / schema.DATA_DIR / "other.parquet").write_bytes(
            first_shard(out).read_bytes()
        ),
        Finding.SHARD_UNLISTED,
    ),
    "one byte flipped": (flip_a_byte, Finding.SHARD_HASH_DIFFERS),
    "shard cut off": (truncate, Finding.SHARD_UNREADABLE),
    "shard of another configuration": (in_shard(drop_metadata), Finding.SHARD_METADATA_DIFFERS),
    "column dropped": (in_shard(lambda t: t.drop_columns([schema.STATE])), Finding.SCHEMA_DIFFERS),
    "column of another type": (
        in_shard(
            lambda t: t.set_column(
                t.column_names.index(schema.TIMESTAMP_S),
                schema.TIMESTAMP_S,
                t[schema.TIMESTAMP_S].cast(pa.float64()),
            )
        ),
        Finding.SCHEMA_DIFFERS,
    ),
    "last row lost": (in_shard(lambda t: t.slice(0, t.num_rows - 1)), Finding.ROW_COUNT_DIFFERS),
    "row repeated": (
        in_shard(lambda t: pa.concat_tables([t.slice(0, 3), t.slice(2)])),
        Finding.FRAME_MISSING,
    ),
    "episode twice": (in_shard(repeat_episode), Finding.KEY_REPEATS),
    "episode renamed": (in_shard(repeat_episode), Finding.EPISODES_DIFFER),
    "frame skipped": (set_value(schema.FRAME_INDEX, 4, 9), Finding.FRAME_MISSING),
    "other revision": (set_value(schema.REVISION, 2, "rev-0"), Finding.DATASET_DIFFERS),
    "null timestamp": (set_value(schema.TIMESTAMP_S, 2, None), Finding.VALUE_MISSING),
    "time stands still": (
        set_value(schema.TIMESTAMP_S, 3, 0.2),
        Finding.TIMESTAMP_NOT_INCREASING,
    ),
    "blank instruction": (set_value(schema.INSTRUCTION, 5, "  "), Finding.INSTRUCTION_EMPTY),
    "image without bytes": (
        set_value(IMAGE, 1, {"bytes": b"", "path": None}),
        Finding.IMAGE_MISSING,
    ),
    "image cut off": (
        set_value(IMAGE, 1, lambda v: {"bytes": v["bytes"][: len(v["bytes"]) // 2], "path": None}),
        Finding.IMAGE_UNDECODABLE,
    ),
    "image of another size": (
        set_value(IMAGE, 1, {"bytes": small_png(), "path": None}),
        Finding.IMAGE_SIZE_CHANGES,
    ),
    "depth code 200": (
        set_value(schema.DEPTH_CODES, 6, lambda v: replaced(v, 50, 200)),
        Finding.DEPTH_CODE_OUT_OF_RANGE,
    ),
    "depth range upside down": (
        set_value(schema.DEPTH_RANGE, 0, [9.0, 1.0]),
        Finding.DEPTH_RANGE_INVALID,
    ),
    "a kept code that is new": (
        set_value(schema.BUFFER_CODES, 5, lambda v: replaced(v, 3, (v[3] + 1) % 128)),
        Finding.DEPTH_BUFFER_DIFFERS,
    ),
    "an episode that keeps another's codes": (
        set_value(schema.DEPTH_UPDATED_MASK, 0, lambda v: [*v[:99], False]),
        Finding.DEPTH_BUFFER_DIFFERS,
    ),
    "half a point": (set_value(schema.GRIPPER_POINTS, 2, [[0.5]]), Finding.POINT_INVALID),
    "confidence 3": (
        set_value(schema.GRIPPER_CONFIDENCE, 2, [3.0]),
        Finding.CONFIDENCE_INVALID,
    ),
    "two arms once": (
        set_value(schema.GRIPPER_POINTS, 2, lambda v: v * 2),
        Finding.ARMS_DIFFER,
    ),
    "six trace points": (
        set_value(schema.TRACE, 0, lambda v: [[*v[0], [1, 2]]]),
        Finding.TRACE_TOO_LONG,
    ),
    "trace from elsewhere": (
        set_value(schema.TRACE, 0, lambda v: [[[255, 255], *v[0][1:]]]),
        Finding.TRACE_NOT_FROM_NOW,
    ),
    "trace of another frame": (
        set_value(schema.TRACE, 0, lambda v: [list(reversed(v[0]))]),
        Finding.TRACE_NOT_FROM_NOW,
    ),
    "quality above one": (
        set_value(schema.TRACE_QUALITY, 4, 1.5),
        Finding.TRACE_QUALITY_INVALID,
    ),
    "trace missing without a reason": (
        set_value(schema.TRACE, 4, [[]]),
        Finding.TRACE_REASON_INCONSISTENT,
    ),
    "infinite action": (
        set_value(schema.ACTION, 7, lambda v: replaced(v, 2, float("inf"))),
        Finding.ACTION_NON_FINITE,
    ),
    "state is NaN": (
        set_value(schema.STATE, 7, lambda v: replaced(v, 0, float("nan"))),
        Finding.STATE_NON_FINITE,
    ),
    "bin 0": (
        set_value(schema.ACTION_BINS, 3, lambda v: replaced(v, 1, [0] * 7)),
        Finding.ACTION_BIN_OUT_OF_RANGE,
    ),
    "bin off by one": (
        set_value(schema.ACTION_BINS, 3, lambda v: replaced(v, 0, [v[0][0] % 256 + 1, *v[0][1:]])),
        Finding.ACTION_BINS_DISAGREE,
    ),
    "one valid step too many": (
        set_value(schema.NUM_VALID_ACTIONS, 8, lambda v: v + 1),
        Finding.NUM_VALID_ACTIONS_WRONG,
    ),
}


def test_a_good_output_has_no_finding_and_everything_was_looked_at(make_output):
    report = validate(str(make_output(depth_buffer="consistent")))

    assert report.to_json()["findings"] == {}
    assert report.passed
    assert (report.rows, report.images) == (33, 66)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_is_found_by_name(name, make_output):
    plant, finding = PLANTED[name]
    out = make_output(depth_buffer="consistent")
    plant(out)

    report = validate(str(out))

    assert finding.value in report.to_json()["findings"], report.to_json()
    assert not report.passed


def test_every_finding_is_planted_at_least_once():
    planted = {finding for _, finding in PLANTED.values()}
    below, by_its_type = (
        {Finding.LOSS_MASK_EMPTY, Finding.SAMPLE_UNREADABLE},
        {Finding.TRACE_OUT_OF_GRID},
    )
    elsewhere = below | by_its_type
    assert set(Finding) - planted == elsewhere


def test_a_row_whose_sample_carries_no_loss_is_found(make_output):
    seen = []

    def check(row, following):
        seen.append((row[schema.EPISODE_INDEX], row[schema.FRAME_INDEX]))
        assert following[0] == row[schema.ACTION]
        assert len(following) == row[schema.NUM_VALID_ACTIONS]
        lost = "nothing is left" if seen[-1] == (2, 6) else ""
        return CheckedSample(0 if seen[-1] == (1, 4) else 17, lost)

    report = validate(str(make_output()), samples=lambda output: check)

    assert report.samples == 33
    assert len(set(seen)) == 33
    assert report.to_json()["findings"] == {"loss_mask_empty": 1, "sample_unreadable": 1}
    assert "episode 1, frame 4" in report.problems[0].where
    assert "episode 2, frame 6" in report.problems[1].where


def test_rows_without_a_possible_sample_are_not_counted_as_samples(make_output):
    report = validate(str(make_output()), samples=lambda output: lambda row, following: None)

    assert report.passed
    assert report.samples == 0


def test_a_folder_that_is_no_output_is_a_mistake_and_an_unfinished_one_a_finding(make_output):
    output = make_output()
    (output / schema.MANIFEST_FILE).unlink()
    report = validate(str(output))

    assert [p.finding for p in report.problems] == [Finding.MANIFEST_UNREADABLE]
    assert "did not finish" in report.problems[0].detail

    other = output.parent / "other"
    other.mkdir()
    (other / "notes.txt").touch()
    with pytest.raises(UserError, match="is not an output"):
        validate(str(other))


def test_the_listed_place_is_the_first_wrong_frame(make_output):
    out = make_output()
    set_value(schema.INSTRUCTION, 14, "")(out)

    problem = validate(str(out)).problems[0]

    assert "episode 1, frame 2" in problem.where  # episode 0 has 12 frames
    assert np.all([part in problem.detail for part in ("instruction", "empty")])
