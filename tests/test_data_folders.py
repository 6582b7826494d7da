"""A dataset's files are what lies in its folder: hidden files are not, linked folders are, and nothing outside it.

Each test changes a sound dataset in one way and compares with the untouched one, revision included.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import FRONT, everything, make_dataset, make_v3_dataset, rows_path
from made_rlds import make_rlds
from PIL import Image

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.files.inputs import HubFolder, LocalFolder, OutsideDatasetError, is_inside
from molmoact_data.sources.opening import open_source

LENGTHS = (6, 4, 5)
MAC_COMPANION = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4000)


def v2(root: Path) -> Path:
    return make_dataset(root, LENGTHS)


def v3(root: Path) -> Path:
    return make_v3_dataset(root, LENGTHS)


def v2_images(root: Path) -> Path:
    """v2.1 with pictures in files beside the rows."""
    make_dataset(root, LENGTHS)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][FRONT]["dtype"] = "image"
    (root / "meta/info.json").write_text(json.dumps(info))
    shutil.rmtree(root / "videos")
    for episode, length in enumerate(LENGTHS):
        folder = root / f"images/{FRONT}/episode_{episode:06d}"
        folder.mkdir(parents=True)
        for frame in range(length):
            (folder / f"frame_{frame:06d}.png").write_bytes(png(10 * episode + frame))
    return root


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


SOURCES: dict[str, Callable[[Path], Path]] = {
    "v2": v2, "v3": v3, "images": v2_images, "rlds": make_rlds
}  # fmt: skip


@pytest.fixture(params=SOURCES)
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return SOURCES[request.param](tmp_path / "data")


def read(root: Path) -> Any:
    source = open_source(root)
    return source.info, everything(source, [source.info.cameras[0].key])


def test_hidden_files_are_no_part_of_a_dataset(root: Path) -> None:
    before = read(root)
    for path in [p for p in root.rglob("*") if p.is_file()]:
        (path.parent / f"._{path.name}").write_bytes(MAC_COMPANION)
        (path.parent / f".{path.name}.swp").write_bytes(b"\x00")
    for folder in [p for p in root.rglob("*") if p.is_dir()] + [root]:
        (folder / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1")
        (folder / ".ipynb_checkpoints").mkdir()
        for path in [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]:
            shutil.copy(path, folder / ".ipynb_checkpoints" / path.name)
    assert read(root) == before


def test_linked_folders_are_followed_once_each(root: Path, tmp_path: Path) -> None:
    before = read(root)
    store = tmp_path / "store"
    store.mkdir()
    deepest = [
        p for p in root.rglob("*") if p.is_dir() and not any(c.is_dir() for c in p.iterdir())
    ]
    for number, folder in enumerate(deepest):
        shutil.move(folder, store / str(number))
        folder.symlink_to(store / str(number))
    for folder in {p.parent for p in deepest}:  # and a way back to the beginning
        (folder / "circle").symlink_to(root)
    assert read(root) == before


def test_a_linked_dataset_folder_and_linked_top_folders_are_the_dataset(
    root: Path, tmp_path: Path
) -> None:
    before = read(root)
    for number, folder in enumerate([p for p in root.iterdir() if p.is_dir()]):
        shutil.move(folder, tmp_path / f"disk{number}")
        folder.symlink_to(tmp_path / f"disk{number}")
    (tmp_path / "other").mkdir()
    link = tmp_path / "other" / root.name
    link.symlink_to(root)
    assert read(link) == before


def test_a_number_sign_in_a_folders_name_is_part_of_it(root: Path) -> None:
    before = read(root)
    (root.parent / "run #2").mkdir()
    moved = shutil.move(root, root.parent / "run #2" / root.name)
    assert read(moved) == before
    renamed = moved.rename(moved.parent / "a#b")
    assert open_source(renamed).info.revision == before[0].revision


PRIVATE = "../private.png"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A picture of the user's, beside the dataset."""
    path = tmp_path / "private.png"
    path.write_bytes(png(99))
    return path


def reject(root: Path) -> EpisodeRejected:
    source = open_source(root)
    with pytest.raises(EpisodeRejected) as caught:
        list(source.iter_frames(source.episodes[0], [FRONT], 4))
    return caught.value


@pytest.mark.parametrize("kind", ["text", "struct"])
@pytest.mark.parametrize("way", ["up", "absolute", "down and up", "link"])
def test_an_image_cell_never_leads_out_of_the_dataset(
    tmp_path: Path, private: Path, kind: str, way: str
) -> None:
    root = v2_images(tmp_path / "data")
    link = root / "images/frame.png"
    link.symlink_to(private)
    named = {
        "up": "../private.png",
        "absolute": str(private),
        "down and up": "images/../../private.png",
        "link": "images/frame.png",
    }[way]
    cells = [named] * LENGTHS[0]
    column = pa.array(cells if kind == "text" else [{"bytes": None, "path": c} for c in cells])
    table = pq.read_table(rows_path(root, 0)).append_column(FRONT, column)
    pq.write_table(table, rows_path(root, 0))
    rejected = reject(root)
    assert rejected.reason is RejectReason.PATH_OUTSIDE_DATASET
    assert named in rejected.detail


def test_the_recorders_absolute_paths_are_found_in_the_datasets_own_folder(tmp_path: Path) -> None:
    root = v2_images(tmp_path / "data")
    before = read(root)[1]
    for episode, length in enumerate(LENGTHS):
        cells = [f"/home/robot/rec/images/frame_{frame:06d}.png" for frame in range(length)]
        table = pq.read_table(rows_path(root, episode)).append_column(FRONT, pa.array(cells))
        pq.write_table(table, rows_path(root, episode))
    assert read(root)[1] == before


@pytest.mark.parametrize("key", ["data_path", "video_path"])
@pytest.mark.parametrize(
    "template",
    [
        "../other/{}",
        "/{}",
        "a/../../{}",
        "{episode_index.__class__}/{}",
        "{episode_index:1000000000d}/{}",
        "{episode_index!r}/{}",
        "{0}/{}",
        "{{episode_index}}/{}",
        3,
        ["x"],
    ],
)
@pytest.mark.parametrize("make", [v2, v3], ids=["v2", "v3"])
def test_a_path_template_is_a_path_and_nothing_else(
    tmp_path: Path, make: Callable[[Path], Path], key: str, template: Any
) -> None:
    root = make(tmp_path / "data")
    info = json.loads((root / "meta/info.json").read_text())
    plain = (
        "chunk-{chunk_index:03d}/file-{file_index:03d}.x"
        if make is v3
        else "e{episode_index:06d}.x"
    )
    info[key] = template.replace("{}", plain) if isinstance(template, str) else template
    (root / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=f"'{key}' must be a path"):
        open_source(root)


@pytest.mark.parametrize("name", ["../../x", "a/../../../../../x", "..", "\0"])
def test_a_cameras_name_is_no_way_out(tmp_path: Path, name: str) -> None:
    root = v2(tmp_path / "data")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = info["features"][FRONT]
    (root / "meta/info.json").write_text(json.dumps(info))
    if (
        name == ".."
    ):  # videos/chunk-000/../episode_000000.mp4 would still be inside, and is refused too
        assert not is_inside("videos/chunk-000/../episode_000000.mp4")
    with pytest.raises(UserError, match="'video_path' must be a path inside the dataset"):
        open_source(root)


@pytest.mark.parametrize(
    "path", ["../private.png", "/etc/passwd", "a/../../private.png", "a\0b", ""]
)
def test_no_folder_fetches_what_is_not_below_it(tmp_path: Path, private: Path, path: str) -> None:
    (tmp_path / "root").mkdir()
    folders = [
        LocalFolder(tmp_path / "root", "x"),
        HubFolder("a/b", "c" * 40, tmp_path / "root", frozenset()),
        HubFolder("a/b", "c" * 40, tmp_path / "root", None),
    ]
    for folder in folders:
        assert not folder.exists(path)
        with pytest.raises(OutsideDatasetError):
            folder.fetch(path)


def test_a_snapshot_of_the_hubs_cache_is_a_dataset(tmp_path: Path) -> None:
    """There every file is a link into the store of blobs."""
    plain = v2(tmp_path / "plain")
    cache = tmp_path / "datasets--lab--cups"
    snapshot = cache / "snapshots" / "abc"
    for number, path in enumerate([p for p in plain.rglob("*") if p.is_file()]):
        blob, link = cache / "blobs" / str(number), snapshot / path.relative_to(plain)
        blob.parent.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert read(snapshot)[1] == read(plain)[1]
