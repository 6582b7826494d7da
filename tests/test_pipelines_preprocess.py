"""The spine on small made datasets: what is written equals a plain re-computation, what is bad is named.

Teachers here are columns (points) and none (depth); the real ones have tests of their own.
"""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import FRONT, WRIST, make_dataset, rows_path, square_path, video_path

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import TEMPORARY_MARK
from molmoact_data.files.storage import Storage
from molmoact_data.pictures.images import decode_image
from pipelines import state
from pipelines.config import nested
from pipelines.preprocess import Summary, preprocess

ROOT = Path(__file__).resolve().parents[1]
COLUMN_POINTS = {
    "depth": "none",
    "pointer": "column",
    "pointer_column": "gripper_xy",
    "pointer_units": "pixels",
    "filter_traces": False,
}


def run(
    dataset: Path, output: Path, *, resume: bool = False, overwrite: bool = False, **more: Any
) -> Summary:
    values = {"dataset_path": str(dataset), "output_path": str(output), "frames_per_shard": 20}
    return preprocess(
        nested({**values, **COLUMN_POINTS, **more}), resume=resume, overwrite=overwrite
    )


def table_of(output: Path) -> pa.Table:
    files = sorted((output / schema.DATA_DIR).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(f) for f in files])


def files_of(output: Path) -> dict[str, bytes]:
    return {
        p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "squares", cameras=(FRONT, WRIST))


@pytest.fixture(scope="module")
def output(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "squares"
    summary = run(dataset, path)
    assert (summary.episodes, summary.frames, summary.rejected_episodes) == (3, 71, 0)
    return path


def test_rows_are_the_dataset_in_order(dataset: Path, output: Path) -> None:
    rows = table_of(output)
    recorded = pa.concat_tables([pq.read_table(rows_path(dataset, e)) for e in range(3)])
    for ours, theirs in (
        (schema.EPISODE_INDEX, "episode_index"),
        (schema.FRAME_INDEX, "frame_index"),
    ):
        assert rows[ours].to_pylist() == recorded[theirs].to_pylist()
    assert rows[schema.ACTION].to_pylist() == recorded["action"].to_pylist()
    assert rows[schema.STATE].to_pylist() == recorded["observation.state"].to_pylist()
    assert set(rows[schema.INSTRUCTION].to_pylist()) == {"push the yellow square"}


def test_bins_equal_a_plain_recomputation(dataset: Path, output: Path) -> None:
    actions = [
        np.array(pq.read_table(rows_path(dataset, e))["action"].to_pylist(), np.float32)
        for e in range(3)
    ]
    low, high = np.quantile(np.concatenate(actions), [0.01, 0.99], axis=0).astype(np.float32)
    expected = []
    for episode in actions:
        x = 2 * (episode - low) / (high - low + np.float32(1e-8)) - 1
        x[:, 6] = 1 - episode[:, 6]
        bins = np.digitize(np.clip(x, -1, 1), np.linspace(-1, 1, 256))
        last = len(bins) - 1
        expected += [bins[[min(t + h, last) for h in range(8)]] for t in range(len(bins))]
    ours = np.array(table_of(output)[schema.ACTION_BINS].to_pylist())
    # A value on an edge may fall either way between float32 and float64 edges.
    assert np.abs(ours - np.array(expected)).max() <= 1
    assert (ours == np.array(expected)).mean() > 0.999


def test_traces_follow_the_true_square(output: Path) -> None:
    rows = table_of(output).to_pylist()
    centre = (square_path(24, 0) + 3.5) / 63 * 255
    for t in (0, 10, 23):
        ahead = centre[t:]
        chosen = ahead[np.linspace(0, len(ahead) - 1, 5).astype(int)] if len(ahead) > 5 else ahead
        assert np.abs(np.array(rows[t][schema.TRACE][0]) - chosen).max() <= 0.5


def test_images_show_their_frame(output: Path) -> None:
    rows = table_of(output).to_pylist()
    for t in (0, 7, 23):
        rgb = decode_image(rows[t][schema.image_column("primary")]["bytes"])
        x, y = square_path(24, 0)[t]
        assert rgb[y + 2 : y + 6, x + 2 : x + 6].mean(axis=(0, 1)) == pytest.approx(
            [250, 220, 40], abs=12
        )
        wrist = decode_image(rows[t][schema.image_column("wrist")]["bytes"])
        assert np.abs(wrist.astype(int) - rgb).mean() > 5


def test_loads_with_datasets_and_is_readable_by_others(output: Path) -> None:
    import datasets
    import duckdb
    import pandas as pd

    files = sorted(str(p) for p in (output / "data").glob("*.parquet"))
    loaded = datasets.load_dataset(
        "parquet", data_files=files, cache_dir=str(output.parent / "cache")
    )["train"]
    assert len(loaded) == 71
    assert loaded[0][schema.image_column("primary")].size == (64, 64)
    query = f"select count(*), max(frame_index) from read_parquet({files})"
    (count,) = duckdb.sql(query).limit(1).fetchall()
    assert count == (71, 29)
    assert len(pd.read_parquet(output / "data")) == 71


def test_manifest_counts_what_is_there(output: Path) -> None:
    manifest = json.loads((output / schema.MANIFEST_FILE).read_text())
    assert manifest["counts"]["frames"] == 71
    assert manifest["cameras"] == {"primary": FRONT, "wrist": WRIST}
    assert [s["rows"] for s in manifest["shards"]] == [24, 47]
    assert {s["name"] for s in manifest["shards"]} == {
        p.relative_to(output).as_posix() for p in (output / "data").iterdir()
    }
    assert not (output / "_state").exists()


def test_resume_on_a_complete_output_builds_nothing(dataset: Path, output: Path) -> None:
    before = files_of(output)
    assert run(dataset, output, resume=True).shards_built == 0
    assert files_of(output) == before


def test_resume_builds_only_the_missing_shard(dataset: Path, output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    lost = sorted((copy / "data").iterdir())[1]
    lost.unlink()
    summary = run(dataset, copy, resume=True)
    assert summary.shards_built == 1
    assert files_of(copy) == files_of(output)


def test_resume_with_another_configuration_names_what_differs(dataset: Path, output: Path) -> None:
    with pytest.raises(UserError, match=r"fingerprint\.labels\.action_chunk_size"):
        run(dataset, output, resume=True, action_chunk_size=4)


def test_a_taken_output_names_both_flags(dataset: Path, output: Path) -> None:
    with pytest.raises(UserError, match=r"--resume .* --overwrite"):
        run(dataset, output)


def test_overwrite_keeps_what_is_not_ours(dataset: Path, output: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    (copy / "notes.txt").write_text("mine")
    run(dataset, copy, overwrite=True)
    assert (copy / "notes.txt").read_text() == "mine"


def test_two_workers_write_the_same_bytes(dataset: Path, output: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "two") == files_of(output)


def test_beam_in_this_process_writes_the_same_bytes(
    dataset: Path, output: Path, tmp_path: Path
) -> None:
    """A single local worker runs without Beam; the graphs, statistics too, must do the same."""
    run(dataset, tmp_path / "beam", runner="FnApiRunner")
    assert files_of(tmp_path / "beam") == files_of(output)


def test_what_a_dead_worker_left_half_written_does_not_stay(
    dataset: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine replaces a killed worker by itself; only the end of the run can tidy up after it."""
    write_record = state.write_record

    def beside_a_dead_one(storage: Storage, record: Any) -> None:
        name = f".{Path(record.name).name}{TEMPORARY_MARK}host-1-2"
        (tmp_path / "out" / record.name).with_name(name).write_bytes(b"half")
        write_record(storage, record)

    monkeypatch.setattr(state, "write_record", beside_a_dead_one)
    run(dataset, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(output)


def test_a_single_worker_does_without_beam(dataset: Path, tmp_path: Path) -> None:
    flags = json.dumps(
        {**COLUMN_POINTS, "dataset_path": str(dataset), "output_path": str(tmp_path / "out")}
    )
    script = (
        "import json, sys\nfrom pipelines.config import nested\n"
        "from pipelines.preprocess import preprocess\n"
        f"preprocess(nested(json.loads('{flags}')), resume=False, overwrite=False)\n"
        "assert 'apache_beam' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def nan_action(root: Path) -> None:
    table = pq.read_table(rows_path(root, 1))
    action = table["action"].to_pylist()
    action[3][2] = float("nan")
    pq.write_table(table.set_column(0, "action", pa.array(action)), rows_path(root, 1))


def truncated_video(root: Path) -> None:
    path = video_path(root, 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_video(root: Path) -> None:
    video_path(root, 1).write_bytes(b"")


def git_lfs_pointer(root: Path) -> None:
    video_path(root, 1).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    )


def short_rows(root: Path) -> None:
    pq.write_table(pq.read_table(rows_path(root, 1)).slice(0, 12), rows_path(root, 1))


def short_video(root: Path) -> None:
    shutil.copy(video_path(root, 1), video_path(root, 2))


def other_action_dimension(root: Path) -> None:
    table = pq.read_table(rows_path(root, 1))
    action = [row[:6] for row in table["action"].to_pylist()]
    pq.write_table(
        table.set_column(0, "action", pa.array(action, pa.list_(pa.float32()))), rows_path(root, 1)
    )


BAD_EPISODES = {
    nan_action: (1, "action_non_finite"),
    truncated_video: (1, "video_undecodable"),
    empty_video: (1, "video_empty"),
    git_lfs_pointer: (1, "video_git_lfs_pointer"),
    short_rows: (1, "lengths_disagree"),
    short_video: (2, "video_shorter_than_rows"),
    other_action_dimension: (1, "action_dimension_differs"),
}


@pytest.mark.parametrize("damage", BAD_EPISODES, ids=lambda f: f.__name__)
def test_a_bad_episode_is_a_named_reject_and_the_rest_is_written(
    damage: Any, tmp_path: Path
) -> None:
    root = make_dataset(tmp_path / "bad")
    damage(root)
    bad, reason = BAD_EPISODES[damage]
    summary = run(root, tmp_path / "out")
    assert summary.exceeded is not None
    assert "--max-reject-fraction" in summary.exceeded
    rejects = [json.loads(line) for line in (tmp_path / "out/rejects.jsonl").open()]
    assert [(r["episode_index"], r["reason"]) for r in rejects] == [(bad, reason)]
    rows = table_of(tmp_path / "out")
    assert set(rows[schema.EPISODE_INDEX].to_pylist()) == {0, 1, 2} - {bad}
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["rejects_by_reason"] == {reason: 1}
    assert run(root, tmp_path / "out", resume=True, max_reject_fraction=0.5).exceeded is None


def test_an_episode_without_instruction_is_rejected(tmp_path: Path) -> None:
    root = make_dataset(tmp_path / "bad")
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": " "}) + "\n")
    episodes = [json.loads(line) for line in (root / "meta/episodes.jsonl").open()]
    (root / "meta/episodes.jsonl").write_text(
        "".join(json.dumps({**e, "tasks": []}) + "\n" for e in episodes)
    )
    with pytest.raises(UserError, match="instruction_missing"):
        run(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset_path": "/no/such/folder"}, "no such path"),
        ({"cameras": {"primary": "observation.images.fornt"}}, "observation.images.front"),
        ({"episodes": "0,99"}, "99"),
        ({"pointer": "colunm"}, "Did you mean 'column'"),
    ],
)
def test_wrong_input_fails_before_any_work(
    dataset: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    values = {"dataset_path": str(dataset), "output_path": str(tmp_path / "out"), **COLUMN_POINTS}
    with pytest.raises(UserError, match=message):
        preprocess(nested({**values, **change}), resume=False, overwrite=False)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_no_space_left_keeps_what_is_complete(
    dataset: Path, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace
    shards = iter([False, True])

    def full(self: Path, target: Path) -> Path:
        if target.suffix == ".parquet" and next(shards):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(UserError, match=r"no space left.*--resume"):
            run(dataset, tmp_path / "out")
    assert len(list((tmp_path / "out/data").iterdir())) == 1
    assert run(dataset, tmp_path / "out", resume=True).shards_built == 1
    assert files_of(tmp_path / "out") == files_of(output)


def test_frozen_statistics_are_used_as_they_are(
    dataset: Path, output: Path, tmp_path: Path
) -> None:
    frozen = json.loads((output / schema.STATISTICS_FILE).read_text())
    frozen["squares"]["action"]["q99"][0] += 10
    path = tmp_path / "frozen.json"
    path.write_text(json.dumps(frozen))
    run(dataset, tmp_path / "out", statistics=str(path))
    assert json.loads((tmp_path / "out" / schema.STATISTICS_FILE).read_text()) == frozen
    ours = np.array(table_of(tmp_path / "out")[schema.ACTION_BINS].to_pylist())[:, 0, 0]
    assert ours.max() < 64


def test_overwrite_deletes_nothing_before_the_teachers_are_there(
    dataset: Path, output: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(output, copy)
    with pytest.raises(UserError, match="no VQ-VAE"):
        run(dataset, copy, overwrite=True, depth="embedded", vqvae="/no/such.pt")
    assert files_of(copy) == files_of(output)
