"""What `--resume` believes: nothing that the record beside it does not confirm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_datasets import make_dataset

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.lock import locked
from molmoact_data.files.storage import Storage
from molmoact_data.files.typed import parse_json
from molmoact_data.outputs.shards import ShardRecord
from pipelines import state
from pipelines.config import nested
from pipelines.preprocess import Summary, preprocess

COLUMN_POINTS = {
    "depth": "none",
    "pointer": "column",
    "pointer_column": "gripper_xy",
    "pointer_units": "pixels",
    "filter_traces": False,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def finished(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("out") / "squares"
    assert run(dataset, path).shards > 1
    return path


def run(dataset: Path, output: Path, **how: Any) -> Summary:
    values = {"dataset_path": str(dataset), "output_path": str(output), "frames_per_shard": 20}
    how = {"resume": False, "overwrite": False} | how
    return preprocess(nested({**values, **COLUMN_POINTS}), **how)


def files_of(output: Path) -> dict[str, bytes]:
    return {
        p.relative_to(output).as_posix(): p.read_bytes() for p in output.rglob("*") if p.is_file()
    }


def killed_late(finished: Path, copy: Path) -> Path:
    """As a run leaves it that was killed before its manifest: every shard, and a record of each."""
    shutil.copytree(finished, copy)
    manifest = json.loads((copy / schema.MANIFEST_FILE).read_text())
    names = [shard["name"] for shard in manifest["shards"]]
    plan = {"fingerprint": manifest["fingerprint"], "shards": names, "files": {}}
    (copy / state.RECORDS_DIR).mkdir(parents=True)
    (copy / state.PLAN_FILE).write_text(json.dumps(plan))
    for shard in manifest["shards"]:
        state.write_record(Storage(str(copy)), parse_json(ShardRecord, json.dumps(shard), "shard"))
    for name in (schema.MANIFEST_FILE, schema.REJECTS_FILE, schema.REPORT_FILE):
        (copy / name).unlink()
    return copy


def complete(finished: Path, copy: Path) -> Path:
    shutil.copytree(finished, copy)
    return copy


def shard_of(output: Path) -> Path:
    return sorted((output / schema.DATA_DIR).glob("*.parquet"))[0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("before", [killed_late, complete])
def test_a_shard_that_is_not_what_was_written_is_made_again(
    before: Callable[[Path, Path], Path],
    damage: str,
    dataset: Path,
    finished: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = before(finished, tmp_path / "out")
    DAMAGE[damage](shard_of(output))
    assert run(dataset, output, resume=True).shards_built == 1
    assert files_of(output) == files_of(finished)
    assert f"{schema.DATA_DIR}/{shard_of(output).name} is missing or not what was" in caplog.text


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"name": 1}', b"\xff", b"[" * 90_000]
)
def test_a_damaged_record_costs_its_shard_alone(
    content: bytes, dataset: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = killed_late(finished, tmp_path / "out")
    record = sorted((output / state.RECORDS_DIR).iterdir())[0]
    record.write_bytes(content)
    assert run(dataset, output, resume=True).shards_built == 1
    assert files_of(output) == files_of(finished)
    assert record.name in caplog.text


@pytest.mark.parametrize("field", ["reversals", "quality_histogram", "calls"])
def test_a_record_whose_numbers_were_changed_is_none(
    field: str, dataset: Path, finished: Path, tmp_path: Path
) -> None:
    """They go into the manifest's measures unseen."""
    output = killed_late(finished, tmp_path / "out")
    record = sorted((output / state.RECORDS_DIR).iterdir())[0]
    plain = json.loads(record.read_text())
    plain["record"]["quality"][field] = [7] if "histogram" in field else 7
    record.write_text(json.dumps(plain))
    assert run(dataset, output, resume=True).shards_built == 1
    assert files_of(output) == files_of(finished)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shards": 3}', b"\xff", b"[" * 90_000])
@pytest.mark.parametrize("name", [state.PLAN_FILE, schema.MANIFEST_FILE])
def test_a_damaged_plan_or_manifest_is_one_line(
    name: str, content: bytes, dataset: Path, finished: Path, tmp_path: Path
) -> None:
    make = killed_late if name == state.PLAN_FILE else complete
    output = make(finished, tmp_path / "out")
    (output / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}|{schema.MANIFEST_FILE}") as met:
        run(dataset, output, resume=True)
    assert "\n" not in str(met.value)


def test_resume_on_a_complete_output_reads_no_frame_and_writes_nothing(
    dataset: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test of what is done, not of time: no shard is opened, no report is drawn."""
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}

    def forbidden(*arguments: object, **more: object) -> None:
        pytest.fail("a complete output was worked on")

    monkeypatch.setattr("pipelines.shards.manifest.write_report", forbidden)
    monkeypatch.setattr("pipelines.preprocess.build_missing_shards", forbidden)
    summary = run(dataset, finished, resume=True)
    assert (summary.shards_built, summary.frames) == (0, 71)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p != finished} == {
        p: when for p, when in before.items() if p != finished
    }


def test_every_shard_is_hashed_once(
    dataset: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = killed_late(finished, tmp_path / "out")
    hashed: list[str] = []
    true_hash = state.file_sha256

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return true_hash(path)

    monkeypatch.setattr(state, "file_sha256", counted)
    assert run(dataset, output, resume=True).shards_built == 0
    assert sorted(hashed) == sorted(p.name for p in (output / schema.DATA_DIR).iterdir())


def test_a_source_file_that_was_replaced_is_named(
    dataset: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "squares"  # the name is part of the rows
    shutil.copytree(dataset, source)
    output = killed_late(finished, tmp_path / "out")
    plan = json.loads((output / state.PLAN_FILE).read_text())
    plan["files"] = state.source_files(str(source))
    (output / state.PLAN_FILE).write_text(json.dumps(plan))
    video = sorted(source.rglob("*.mp4"))[0]
    content = video.read_bytes()
    video.write_bytes(content + b"\0")
    with pytest.raises(UserError, match=rf"{video.relative_to(source)} is not what it was"):
        run(source, output, resume=True)
    video.write_bytes(content)  # the same bytes at another time
    assert run(source, output, resume=True).shards_built == 0
    assert f"{video.relative_to(source)} was written again since the run" in caplog.text


def test_a_second_run_on_one_output_touches_nothing(
    dataset: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock belongs to a process, so the first run has to be another one."""
    import subprocess
    import sys

    output = killed_late(finished, tmp_path / "out")
    shard_of(output).unlink()
    before = files_of(output)
    code = (
        "import sys; from pathlib import Path; from molmoact_data.files.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('here', flush=True); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(output)], cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdout is not None
    assert first.stdout.readline() == "here\n"
    for how in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=f"is being written by process {first.pid} on"):
            run(dataset, output, **how)
    assert {k: v for k, v in files_of(output).items() if k != ".lock"} == before
    first.kill()
    first.wait()
    assert run(dataset, output, resume=True).shards_built == 1
    assert files_of(output) == files_of(finished)
    with locked(output):
        pass
