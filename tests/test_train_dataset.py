"""Sources and samples: what is read, what is asked about it, what is refused, against the files themselves."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_training import open_eval_data, open_training_data
from PIL import Image

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.text import prompts
from molmoact_train.config import resolve
from molmoact_train.data.base import RobotRow, TooLong
from molmoact_train.data.dataset import TrainingData, warn_of_mixed_depth
from molmoact_train.data.mixture import sample_rng
from molmoact_train.data.rendering import KIND_NEEDS, RenderSettings, kinds_of, render, shrink
from molmoact_train.data.sources import ShardSource, open_source
from molmoact_train.data.split import SourceOptions
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import tiny_processor
from molmoact_train.families.molmoact.processor import MolmoActProcessor
from molmoact_train.families.molmoact.samples import (
    PARTS,
    MolmoActSample,
    answer_parts,
    build_sample,
    fold_equal_crops,
)

ALL = ("reasoning", "trajectory", "depth", "trace")
BOTH = ("reasoning", "trajectory")


@pytest.fixture(scope="module")
def processor() -> MolmoActProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_debug_dataset(tmp_path_factory.mktemp("data"), episodes=4, frames=6)


def options(max_images: int = 2, kinds: tuple[str, ...] = BOTH, **changes: object) -> SourceOptions:
    needs = {kind: KIND_NEEDS[kind] for kind in kinds}  # type: ignore[index]
    return SourceOptions(needs=needs, max_images=max_images, **changes)  # type: ignore[arg-type]


def shards(folder: Path, **changes: object) -> ShardSource:
    return ShardSource(folder, options(**changes))  # type: ignore[arg-type]


def table(folder: Path) -> pa.Table:
    return pq.read_table(folder / schema.DATA_DIR)


def settings(**changes: object) -> RenderSettings:
    given = {
        "kinds": dict.fromkeys(BOTH, 0.5),
        "wording": "released",
        "augment": False,
        "crop_depth": False,
        "max_side": 84,
        **changes,
    }
    return RenderSettings(**given)  # type: ignore[arg-type]


def test_rows_are_those_of_the_file(folder: Path) -> None:
    rows, source = table(folder).to_pylist(), shards(folder)
    for index, number in enumerate(source.rows):
        row, expected = source.row(index), rows[number]
        assert list(row.depth_codes or ()) == expected[schema.DEPTH_CODES]
        assert row.traces == expected[schema.TRACE]
        assert row.action_bins.tolist() == expected[schema.ACTION_BINS]
        assert row.images == tuple(
            expected[schema.image_column(r)]["bytes"] for r in ("front", "wrist")
        )


def test_rows_without_a_usable_trace_are_left_out_and_counted(folder: Path) -> None:
    """Brute force over the table: only rows whose every arm has two points may be asked about."""
    rows, source = table(folder).to_pylist(), shards(folder)
    traced = [
        i for i, r in enumerate(rows)
        if r[schema.TRACE_REJECT_REASON] is None and min(map(len, r[schema.TRACE])) >= 2
    ]  # fmt: skip
    assert source.rows.tolist() == traced
    assert 0 < len(traced) < len(rows)
    assert sum(source.left_out.values()) == len(rows) - len(traced)
    assert set(source.left_out) == {"fewer than 2 trace points"}
    with_depth = shards(folder, kinds=(*BOTH, "depth"))
    assert with_depth.size == len(rows), "depth alone can be asked about every frame"


def test_a_frame_without_a_trace_never_gets_a_trace_question(folder: Path) -> None:
    source = shards(folder, kinds=ALL)
    kinds: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for index in range(source.size):
        row = source.row(index)
        for seed in range(6):
            rng = sample_rng(0, 100 * index + seed)
            rendered = render(row, rng, settings(kinds=dict.fromkeys(ALL, 1.0)))
            kinds[row.traces is not None][rendered.kind] += 1
    assert set(kinds[False]) == {"depth"}
    assert set(kinds[True]) == set(ALL)


def test_what_can_be_asked() -> None:
    def kinds(*, depth: bool, trace: bool, action: bool) -> list[str]:
        bins = np.ones((1, 1), dtype=np.int16)
        return kinds_of(
            RobotRow(
                "here", (), "go", (1,) if depth else None, [[[0, 0], [9, 9]]] if trace else None,
                bins if action else None,
            )
        )  # fmt: skip

    every = ["reasoning", "trajectory", "action", "depth", "trace"]
    assert kinds(depth=True, trace=True, action=True) == every
    assert kinds(depth=True, trace=False, action=True) == ["action", "depth"]
    assert kinds(depth=False, trace=True, action=True) == ["trajectory", "action", "trace"]
    assert kinds(depth=True, trace=True, action=False) == ["depth", "trace"]
    assert kinds(depth=False, trace=False, action=True) == ["action"]


def test_held_out_episodes_are_whole_and_apart(folder: Path) -> None:
    kept = shards(folder, held_out_fraction=0.5, seed=3)
    held = shards(folder, held_out_fraction=0.5, held_out=True, seed=3)
    assert sorted([*kept.episodes, *held.episodes]) == [0, 1, 2, 3]
    assert len(held.episodes) == 2
    assert not set(kept.rows) & set(held.rows)
    assert shards(folder, held_out_fraction=0.999, seed=3).size > 0, "never everything"


def test_recorded_actions_follow_the_row_to_the_end_of_its_episode(folder: Path) -> None:
    rows, source = table(folder).to_pylist(), shards(folder)
    for index in (0, source.size - 1):
        first = rows[source.rows[index]]
        following = [
            r[schema.ACTION] for r in rows
            if r[schema.EPISODE_INDEX] == first[schema.EPISODE_INDEX]
            and 0 <= r[schema.FRAME_INDEX] - first[schema.FRAME_INDEX] < 4
        ]  # fmt: skip
        row = source.row(index)
        assert row.num_valid == len(following)
        padded = [*following, *[following[-1]] * (4 - len(following))]
        np.testing.assert_array_equal(row.actions_HD, np.asarray(padded, dtype=np.float32))
        assert row.statistics_key == "debug/square"


# Bad input


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_missing_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    next(copy.rglob("*.parquet")).unlink()
    with pytest.raises(UserError, match=r"episodes-.*parquet is missing although the manifest"):
        open_source(str(copy), options(max_images=1))


def test_a_manifest_of_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    manifest = json.loads((copy / schema.MANIFEST_FILE).read_text())
    manifest["shards"][0]["rows"] += 1
    (copy / schema.MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"shards\.0: 25 rows, but its episodes have other ones"):
        shards(copy)


def test_other_statistics_than_the_tokens_were_made_with_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    copy = copied(folder, tmp_path)
    text = (copy / schema.STATISTICS_FILE).read_text()
    entry = json.loads(text)
    next(iter(entry.values()))["action"]["q99"][0] += 1.0
    (copy / schema.STATISTICS_FILE).write_text(json.dumps(entry))
    with pytest.raises(UserError, match="does not match"):
        shards(copy)


def test_an_unfinished_or_foreign_folder_is_explained(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    (copy / schema.MANIFEST_FILE).unlink()
    with pytest.raises(UserError, match="did not finish"):
        open_source(str(copy), options(max_images=1))
    with pytest.raises(UserError, match="no such folder"):
        open_source(str(tmp_path / "nowhere"), options(max_images=1))
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="neither an output"):
        open_source(str(tmp_path), options(max_images=1))


def test_a_damaged_shard_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copied(folder, tmp_path)
    next(copy.rglob("*.parquet")).write_bytes(b"PAR1 not parquet")
    with pytest.raises(UserError, match="damaged"):
        shards(copy)


def test_robots_of_different_dimension_do_not_mix(
    folder: Path, tmp_path: Path, processor: MolmoActProcessor
) -> None:
    other = write_debug_dataset(tmp_path / "other", action_dim=3, name="debug/other")
    given = {"checkpoint": "c", "data": [str(folder), str(other)], "output_path": "s"}
    with pytest.raises(UserError, match=r"different action dimensions .*7.*3"):
        open_training_data(resolve("debug", given), processor)


def test_depth_that_means_something_else_is_told_and_equal_depth_is_not(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = shards(folder)
    other = shards(write_debug_dataset(tmp_path / "other", name="debug/other"))
    warn_of_mixed_depth([first, other])
    assert not caplog.text
    manifest = other.output.manifest
    labels = {**manifest.labels, "depth_scaling": "steady"}
    changed = replace(manifest, fingerprint={**manifest.fingerprint, "labels": labels})
    other.output = replace(other.output, manifest=changed)
    warn_of_mixed_depth([first, other])
    assert "debug/other do not mean the same (depth_scaling image and steady)" in caplog.text


# Published-mixture rows


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 30), (colour, 0, 0)).save(out, "PNG")
    return out.getvalue()


def conversation_table() -> pa.Table:
    turns = {"from": ["human", "gpt", "human", "gpt"], "value": ["q1?", "a1", "q2?", "a2"]}
    one = {"from": ["human", "gpt"], "value": ["go where?", "there"]}
    return pa.Table.from_pylist(
        [
            {"wrist": {"bytes": png(9), "path": None}, "primary": {"bytes": png(8), "path": None},
             "conversations": turns, "annotation": None},
            {"wrist": {"bytes": png(7), "path": None}, "primary": {"bytes": png(6), "path": None},
             "conversations": one, "annotation": "[[10, 20], [200, 250]]"},
        ]
    )  # fmt: skip


def saved_as_arrow(folder: Path) -> None:
    import datasets

    datasets.Dataset(conversation_table()).save_to_disk(str(folder))


def saved_as_parquet(folder: Path) -> None:
    folder.mkdir()
    pq.write_table(conversation_table(), folder / "part.parquet")


@pytest.mark.parametrize("save", [saved_as_parquet, saved_as_arrow])
def test_published_rows(save: object, tmp_path: Path) -> None:
    folder = tmp_path / "mixture"
    save(folder)  # type: ignore[operator]
    source = open_source(str(folder), options())
    assert source.size == 2
    assert source.cameras == ("primary", "wrist"), "the external view comes first"
    first, second = source.row(0), source.row(1)
    assert first.turns == (("q1?", "a1"), ("q2?", "a2"))
    assert first.trace is None
    assert second.trace == [[10, 20], [200, 250]]
    assert first.images == (png(8), png(9))
    pairs = {render(first, sample_rng(0, i), settings()).answer for i in range(20)}
    assert pairs == {"a1", "a2"}
    drawn = np.asarray(render(second, sample_rng(0, 0), settings()).images[0])
    assert (drawn[..., 1:] > 200).any(), "the annotation is drawn in cyan on the first image"


def test_a_bad_annotation_is_named(tmp_path: Path) -> None:
    rows = conversation_table().to_pylist()
    rows[0]["annotation"] = "somewhere"
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = open_source(str(tmp_path), options(max_images=1))
    with pytest.raises(UserError, match="row 0: annotation 'somewhere'"):
        source.row(0)


# Samples


def test_a_trajectory_sample_shows_the_trace_and_a_reasoning_sample_does_not(folder: Path) -> None:
    row = shards(folder).row(0)
    plain = render(row, sample_rng(0, 0), settings(kinds={"reasoning": 1.0}))
    drawn = render(row, sample_rng(0, 0), settings(kinds={"trajectory": 1.0}))
    assert np.asarray(plain.images[0]).tobytes() != np.asarray(drawn.images[0]).tobytes()
    assert np.asarray(plain.images[1]).tobytes() == np.asarray(drawn.images[1]).tobytes()
    assert prompts.format_trace(row.traces[0]) in plain.answer
    assert prompts.format_actions(row.action_bins) in drawn.answer


def test_augmented_labels_follow_the_picture(folder: Path) -> None:
    """A trace question under augmentation names the square's place in the *augmented* picture."""
    source = shards(folder, kinds=("trace",))
    checked = 0
    for index in range(source.size):
        row = source.row(index)
        augmented = settings(kinds={"trace": 1.0}, augment=True, max_side=96)
        rendered = render(row, sample_rng(1, index), augmented)
        (trace,) = prompts.parse(rendered.answer, action_dim=7).traces
        bright = np.asarray(rendered.images[0].convert("L"), dtype=float)
        ys, xs = np.nonzero(bright > 0.6 * bright.max())
        near_edge = any(not 30 < v < 225 for v in trace[0])
        if near_edge:
            continue  # the square itself is cut there
        expected = np.array(trace[0]) / 255 * 95
        assert np.abs(np.array([xs.mean(), ys.mean()]) - expected).max() < 2.0
        checked += 1
    assert checked > 3


def test_parts_of_an_answer(processor: MolmoActProcessor) -> None:
    """Independent answer: decode the tokens of each part and look at the characters."""
    answer = prompts.answer(
        "reasoning", depth_codes=[3, 5], trace=[[[1, 2], [30, 40]]],
        action_bins=[[1, 128], [256, 7]], num_images=2,
    )  # fmt: skip
    ids, parts = processor.encode(f" {answer}"), answer_parts(answer, processor)
    assert len(ids) == len(parts)
    text = {
        p: processor.decode([i for i, q in zip(ids, parts, strict=True) if PARTS[q] == p])
        for p in PARTS
    }
    assert text["depth"].strip() == "<DEPTH_START><DEPTH_3><DEPTH_5><DEPTH_END>"
    assert text["trace"].strip() in (
        "[[1,2],[30,40]]",
        "[[1,2],[30,40]].",
    )  # `]].` may be one token
    actions = prompts.format_actions([[1, 128], [256, 7]])
    assert text["action"].strip() in (actions, f"{actions}.")
    assert "The depth map of the first image is" in text["other"]


def test_a_sample_is_the_processors_with_equal_crops_folded(
    folder: Path, processor: MolmoActProcessor
) -> None:
    rendered = render(shards(folder).row(0), sample_rng(0, 0), settings())
    sample = build_sample(0, rendered, processor)
    plain = processor.training_sample(rendered.images, rendered.question, rendered.answer)
    assert np.array_equal(sample.crops_UPC[sample.crop_slots], plain["images"])
    assert len(sample.crops_UPC) == 2 < len(sample.crop_slots), "overview and tile are equal"
    assert np.array_equal(sample.input_tokens, plain["input_tokens"])
    assert (sample.parts[sample.loss_weights == 0] == 0).all()


def test_folding_keeps_order_and_pixels() -> None:
    crops = np.random.default_rng(0).random((5, 2, 3)).astype(np.float32)
    crops[3] = crops[1]
    folded, slots = fold_equal_crops(crops)
    assert slots.tolist() == [0, 1, 2, 1, 3]
    assert np.array_equal(folded[slots], crops)


def test_over_long_samples_are_reported_not_cut(folder: Path, processor: MolmoActProcessor) -> None:
    config = resolve(
        "debug", {"checkpoint": "c", "data": [str(folder)], "output_path": "s", "seq_len": 300}
    )
    data = open_training_data(config, processor)
    items = [data[p] for p in range(8)]
    short, long = ([i for i in items if isinstance(i, kind)] for kind in (MolmoActSample, TooLong))
    assert long
    assert all(item.num_tokens > 300 and "episode" in item.where for item in long)
    assert all(item.num_tokens <= 300 for item in short)


def test_a_position_always_gives_the_same_sample(
    folder: Path, processor: MolmoActProcessor
) -> None:
    given = {"checkpoint": "c", "data": [str(folder)], "output_path": "s", "img_aug": True}
    config = resolve("debug", given)

    def sample(data: TrainingData, position: int) -> MolmoActSample:
        item = data[position]
        assert isinstance(item, MolmoActSample)
        return item

    one, two = (open_training_data(config, processor) for _ in range(2))
    for position in (11, 3, 11):
        a, b = sample(one, position), sample(two, position)
        assert np.array_equal(a.crops_UPC, b.crops_UPC)
        assert np.array_equal(a.input_tokens, b.input_tokens)


def test_held_out_data_is_never_augmented(folder: Path, processor: MolmoActProcessor) -> None:
    given = {"checkpoint": "c", "data": [str(folder)], "output_path": "s", "img_aug": True}
    assert open_eval_data(resolve("debug", given), processor) is None
    held = open_eval_data(resolve("debug", given, {"eval_fraction": 0.5}), processor)
    assert held is not None
    assert not held.encoder.settings.augment


def test_pictures_shrink_but_never_grow() -> None:
    assert shrink(Image.new("RGB", (640, 480)), 378).size == (378, 284)
    assert shrink(Image.new("RGB", (256, 200)), 378).size == (256, 200)
