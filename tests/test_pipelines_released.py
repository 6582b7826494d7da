"""`preprocess` with the teachers' files as they are released (tiny weights): every step from files to the report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden import SHARED_DATA, needs_shared_data
from made_datasets import make_dataset
from made_molmo import POINT, write_molmo
from made_molmo2 import write_molmo2
from made_released import into_cache, write_depth_anything, write_vqvae

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.teachers.choice import TeacherConfig, downloads
from molmoact_data.teachers.codebook import codebook_path
from molmoact_data.teachers.published import (
    DEPTH_WEIGHTS,
    MOLMO_7B_D,
    RELEASED_VQVAE,
    Published,
)
from molmoact_data.teachers.registry import EMBEDDED_VQVAE
from vqvae.checkpoint import load

ROOT = Path(__file__).resolve().parent.parent
Answered = TypeVar("Answered")


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), "preprocess", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said
    return said


def rows_of(output: Path) -> pa.Table:
    files = sorted((output / schema.DATA_DIR).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])


def data_of(output: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (output / schema.DATA_DIR).glob("*.parquet")}


def asked_frames(cache: Path) -> list[tuple[str, int]]:
    """Which frame of which episode each line of the point cache is about."""
    return [
        (file.name, json.loads(line)["frame"])
        for file in sorted(cache.rglob("*.jsonl"))
        for line in file.read_text().splitlines()
    ]


def killed_and_resumed(
    tmp_path: Path,
    arguments: Callable[[Path, Path], list[str]],
    asked_in: Callable[[Path], list[Answered]],
    enough: int,
) -> tuple[Path, list[Answered]]:
    """The output of a run killed after `enough` answers and resumed, and what was asked: nothing twice.

    `arguments` are those of a run with this output and point cache, `asked_in` reads a cache. An uninterrupted run
    leaves the same bytes.
    """
    whole, whole_cache = tmp_path / "whole", tmp_path / "whole_cache"
    finish(start(*arguments(whole, whole_cache)))
    output, cache = tmp_path / "killed", tmp_path / "killed_cache"
    process = start(*arguments(output, cache))
    while process.poll() is None and len(asked_in(cache)) < enough:
        time.sleep(0.02)
    assert process.poll() is None, "the run was over before it could be killed"
    process.kill()
    process.communicate()
    paid = asked_in(cache)
    assert paid
    finish(start(*arguments(output, cache), "--resume"))
    asked = asked_in(cache)
    assert len(asked) == len(set(asked)) == len(asked_in(whole_cache))
    assert set(paid) <= set(asked)
    assert data_of(output) == data_of(whole)
    return output, asked


@needs_shared_data
def test_rollouts_with_molmo_killed_and_resumed_to_the_report(tmp_path: Path) -> None:
    """No frame is asked about twice: what a killed run paid for is read from the point cache."""
    folder = write_molmo(tmp_path / "Molmo-7B-D-0924", num_files=7)

    def arguments(output: Path, cache: Path) -> list[str]:
        return [
            *("--dataset-path", str(SHARED_DATA / "libero_rollouts_v21"), "--output-path", str(output)),
            *("--episodes", "4", "--depth", "embedded", "--vqvae", "embedded"),
            *("--pointer", "molmo", "--pointer-checkpoint", str(folder)),
            *("--point-every", "10", "--point-cache", str(cache), "--frames-per-shard", "1"),
            *("--device", "cpu", "--batch-size", "16"),
        ]  # fmt: skip

    output, _ = killed_and_resumed(tmp_path, arguments, asked_frames, 4)
    assert (output / "report.html").is_file()
    rows = rows_of(output)
    points = np.array(rows[schema.GRIPPER_POINTS].to_pylist(), dtype=np.float64)
    expected = [POINT[0] / 100 * 256 / 255, POINT[1] / 100 * 256 / 255]
    np.testing.assert_allclose(points.reshape(len(rows), -1)[0], expected, atol=0.01)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["teachers"]["gripper_pointer"]["name"] == "molmo/Molmo-7B-D-0924"


@needs_shared_data
def test_rollouts_in_clips_killed_and_resumed_to_the_report(tmp_path: Path) -> None:
    """Molmo2 answers about windows of an episode that is longer than they are; no clip is asked about twice."""
    said = [
        '<tracks coords="',
        "0.0 1 620 510",
        *(f";{t / 2} 1 620 510" for t in range(1, 4)),
        '">g',
    ]
    folder = write_molmo2(tmp_path / "Molmo2-4B", said)

    def arguments(output: Path, cache: Path) -> list[str]:
        return [
            *("--dataset-path", str(SHARED_DATA / "libero_rollouts_v21"), "--output-path", str(output)),
            *("--episodes", "4", "--depth", "none", "--pointer", "molmo2", "--pointer-checkpoint", str(folder)),
            *("--point-every", "10", "--clip-frames", "4", "--clip-overlap", "2", "--point-cache", str(cache)),
            *("--device", "cpu", "--batch-size", "16"),
        ]  # fmt: skip

    output, asked = killed_and_resumed(tmp_path, arguments, lines_of, 2)
    manifest = json.loads((output / "manifest.json").read_text())
    frames, quality = manifest["counts"]["frames"], manifest["quality"]
    keyframes = -(-(frames - 1) // 10) + 1
    clips = [json.loads(line) for line in asked if line.startswith('{"clip"')]
    assert len(clips) == 1 + -(-(keyframes - 4) // 2)
    assert quality["asked"] == keyframes / frames
    assert quality["unanswered"] == 0
    assert quality["calls_per_frame"] == len(asked) / frames == len(clips) / frames
    assert quality["pictures_per_frame"] == sum(clip["clip"] for clip in clips) / frames
    assert quality["read_tokens_per_frame"] == sum(clip["tokens"][0] for clip in clips) / frames
    assert manifest["teachers"]["gripper_pointer"]["clips"] == "told at 2 frames per second"
    assert "questions per frame" in (output / "report.html").read_text()


def lines_of(cache: Path) -> list[str]:
    """Every answer in a point cache."""
    return [
        line for file in sorted(cache.rglob("*.jsonl")) for line in file.read_text().splitlines()
    ]


def released_cache(home: Path) -> None:
    """Everything that the default configuration downloads."""
    small = DEPTH_WEIGHTS["vits"]
    into_cache(home, small.repository, write_depth_anything(home / "dav2"), small.revision)
    write_vqvae(home / "molmoact" / "vae-final.pt")
    into_cache(home, "allenai/MolmoAct-7B-D-0812", home / "molmoact")
    into_cache(home, MOLMO_7B_D.repository, write_molmo(home / "molmo"), MOLMO_7B_D.revision)


def test_the_default_configuration_from_the_download_to_the_shards(tmp_path: Path) -> None:
    """No teacher is named: depth, codebook and pointer are fetched at their revisions, said, used and written down."""
    released_cache(tmp_path / "hub")
    dataset = make_dataset(tmp_path / "squares", lengths=[3, 2])
    output = tmp_path / "out"
    said = finish(
        start(
            *("--dataset-path", str(dataset), "--output-path", str(output), "--device", "cpu"),
            HF_HOME=str(tmp_path / "hub"), HF_HUB_OFFLINE="1",
        )
    )  # fmt: skip
    flat = " ".join(said.split())
    for one in (DEPTH_WEIGHTS["vits"], RELEASED_VQVAE, MOLMO_7B_D):
        assert one.repository in flat
        assert one.size in flat
    rows = rows_of(output)
    assert rows.num_rows == 5
    assert np.array(rows[schema.DEPTH_CODES].to_pylist()).shape == (5, 100)
    manifest = json.loads((output / "manifest.json").read_text())
    teachers = manifest["teachers"]
    assert teachers["depth"]["licence"] == "Apache-2.0"
    assert teachers["depth_tokenizer"]["revision"].startswith("sha256:")
    assert teachers["depth"]["revision"] == DEPTH_WEIGHTS["vits"].revision
    assert teachers["gripper_pointer"] == {
        "name": f"molmo/{MOLMO_7B_D.repository}", "revision": MOLMO_7B_D.revision, "licence": "Apache-2.0",
    }  # fmt: skip
    assert (output / "report.html").is_file()


def test_the_dry_run_lists_the_downloads() -> None:
    """From where, how big, under which licence; what is given as a path is not fetched."""
    found = {role: one.describe() for role, one in downloads(TeacherConfig()).items()}
    assert list(found) == ["depth", "depth_tokenizer", "gripper_pointer"]
    assert found["gripper_pointer"].endswith("about 32.1 GB, licence Apache-2.0")
    base = TeacherConfig(depth_encoder="vitb", vqvae="mine.pt", pointer_checkpoint="folder")
    assert [one.licence for one in downloads(base).values()] == ["CC-BY-NC-4.0"]
    assert downloads(TeacherConfig(depth="none", pointer="none")) == {}
    large = TeacherConfig(depth="none", pointer_checkpoint="allenai/Molmo-72B-0924")
    assert "Tongyi Qianwen" in downloads(large)["gripper_pointer"].describe()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
         "Git LFS pointer"),
        (lambda p: p.unlink(), "no VQ-VAE checkpoint at"),
        (lambda p: p.write_bytes(p.read_bytes()[:1000]), "not a plain state dict"),
    ],
)  # fmt: skip
def test_a_wrong_codebook_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    path = write_vqvae(tmp_path / "vae-final.pt")
    spoil(path)
    with pytest.raises(UserError, match=said) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_codebooks_have_names_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`released` and `embedded` where a path could stand; a file of that name wins."""
    asked: list[Published] = []
    write_vqvae(tmp_path / "snapshot" / "vae-final.pt")

    def fake(published: Published) -> Path:
        asked.append(published)
        return tmp_path / "snapshot"

    monkeypatch.setattr("molmoact_data.teachers.codebook.fetch", fake)
    monkeypatch.chdir(tmp_path)
    assert codebook_path("released") == tmp_path / "snapshot" / "vae-final.pt"
    assert load("released").model.geometry.num_tokens == 100
    assert load("embedded").recipe == load(EMBEDDED_VQVAE).recipe
    Path("released").write_bytes(b"")
    assert codebook_path("released") == Path("released")
    assert asked == [RELEASED_VQVAE] * 2
