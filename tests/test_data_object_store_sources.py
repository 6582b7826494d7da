"""Datasets on `s3://` paths, against a real S3-compatible server: the same labels as from a local copy."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from golden import SHARED_DATA
from made_datasets import FRONT, everything, make_dataset, make_v3_dataset
from test_data_episodes_rlds import COMMON, SHAPES, episode, serialize, write

from molmoact_data.errors import EpisodeRejected, UserError
from molmoact_data.files import object_store
from molmoact_data.sources.opening import open_source
from pipelines.config import nested
from pipelines.preprocess import preprocess

ROOT = Path(__file__).resolve().parent.parent
BRIDGE = SHARED_DATA / "bridge-rlds-octo" / "bridge_dataset" / "1.0.0"
ROLLOUTS = SHARED_DATA / "libero_rollouts_v30"
POINTS = {"pointer": "column", "pointer_column": "gripper_xy", "pointer_units": "pixels"}
EMBEDDED = {"depth": "embedded", "vqvae": "embedded", "pointer": "embedded"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's machine keeps what it fetched."""
    monkeypatch.setenv("MOLMOACT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sources"


def upload(root: Path, url: str) -> str:
    filesystem, base = fsspec.core.url_to_fs(url)
    for path in root.rglob("*"):
        if path.is_file():
            filesystem.pipe_file(f"{base}/{path.relative_to(root).as_posix()}", path.read_bytes())
    return url


def cached(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "files").glob("*/*"))


def shards(dataset: str | Path, output: Path, **settings: Any) -> dict[str, bytes]:
    """Run the whole command; the bytes of every shard, by its name."""
    values = {"dataset_path": str(dataset), "output_path": str(output), "frames_per_shard": 20}
    summary = preprocess(nested({**values, **settings}), resume=False, overwrite=False)
    assert summary.frames > 0
    return {p.name: p.read_bytes() for p in (output / "data").iterdir()}


@pytest.mark.parametrize("make", [make_dataset, make_v3_dataset], ids=["v2.1", "v3.0"])
def test_a_lerobot_dataset_on_s3_gives_the_shards_of_its_local_copy(
    make: Any, bucket: str, cache: Path, tmp_path: Path
) -> None:
    local = make(tmp_path / "squares")
    expected = shards(local, tmp_path / "a", depth="none", **POINTS)

    remote = shards(upload(local, f"{bucket}/squares"), tmp_path / "b", depth="none", **POINTS)

    assert len(expected) > 1
    assert remote == expected  # names hold the configuration, the source's name and its revision


WORKER = """
import hashlib, sys
from made_datasets import FRONT, everything
from molmoact_data.sources.opening import open_source
source = open_source(sys.argv[1], isolate=True)
print(hashlib.sha256(repr(everything(source, [FRONT])).encode()).hexdigest())
"""


def test_processes_that_know_only_the_url_read_the_same(
    bucket: str, cache: Path, tmp_path: Path
) -> None:
    """Two at once on one cache, as a worker and its neighbour, each with a decoder process."""
    local = make_v3_dataset(tmp_path / "squares")
    url = upload(local, f"{bucket}/squares")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, url], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    expected = hashlib.sha256(repr(everything(open_source(local), [FRONT])).encode()).hexdigest()
    assert [worker.communicate(timeout=300)[0].strip() for worker in workers] == [expected] * 2
    assert len(cached(cache)) == len([p for p in local.rglob("*.*") if p.is_file()])


@pytest.mark.skipif(not ROLLOUTS.is_dir(), reason=f"real input is not at {ROLLOUTS}")
def test_a_real_v30_dataset_on_s3_gives_the_labels_of_its_local_copy(
    bucket: str, cache: Path, tmp_path: Path
) -> None:
    expected = shards(ROLLOUTS, tmp_path / "a", episodes="4", **EMBEDDED)
    url = upload(ROLLOUTS, f"{bucket}/lerobot/{ROLLOUTS.name}")
    assert shards(url, tmp_path / "b", episodes="4", **EMBEDDED) == expected


@pytest.mark.skipif(not BRIDGE.is_dir(), reason=f"real input is not at {BRIDGE}")
def test_bridge_on_s3_gives_the_labels_of_its_local_copy(
    bucket: str, cache: Path, tmp_path: Path
) -> None:
    settings = {"cameras": {"primary": "observation/image_0"}, "episodes": "0-4", **EMBEDDED}
    expected = shards(BRIDGE, tmp_path / "a", **settings)
    url = upload(BRIDGE, f"{bucket}/bridge_dataset/1.0.0")
    assert shards(url, tmp_path / "b", **settings) == expected


def test_videos_come_when_an_episode_needs_them(bucket: str, cache: Path, tmp_path: Path) -> None:
    url = upload(make_dataset(tmp_path / "squares"), f"{bucket}/squares")

    source = open_source(url)
    columns = source.read_columns(source.episodes[1])
    assert not [name for name in cached(cache) if name.endswith(".mp4")]
    list(source.iter_frames(source.episodes[1], [FRONT], 8))

    assert len(columns.action) == 17
    assert [n for n in cached(cache) if n.endswith(".mp4")] == ["episode_000001.mp4"]


def test_the_second_opening_downloads_nothing(
    bucket: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = upload(make_v3_dataset(tmp_path / "squares"), f"{bucket}/squares")
    first = everything(open_source(url), [FRONT])

    def refuse(*_: object) -> None:
        raise AssertionError("a file was downloaded again")

    monkeypatch.setattr(object_store.ObjectStoreFolder, "_download", refuse)
    assert everything(open_source(url), [FRONT]) == first


def test_a_cache_smaller_than_the_dataset_gives_the_same_and_stays_small(
    bucket: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = make_dataset(tmp_path / "squares", lengths=(12,) * 8, size=96)
    whole = sum(p.stat().st_size for p in local.rglob("*.*"))
    limit = whole // 4
    monkeypatch.setenv("MOLMOACT_CACHE_GIB", str(limit / 2**30))

    remote = everything(open_source(upload(local, f"{bucket}/squares")), [FRONT])

    assert remote == everything(open_source(local), [FRONT])
    kept = [p.stat().st_size for p in (cache / "files").glob("*/*")]
    assert 0 < sum(kept) <= limit
    assert len(kept) > 1


def test_changed_content_is_another_revision_and_is_read(
    bucket: str, cache: Path, tmp_path: Path
) -> None:
    local = make_dataset(tmp_path / "squares")
    before = open_source(upload(local, f"{bucket}/squares"))
    shutil.rmtree(local)
    upload(make_dataset(local, lengths=(9, 17, 30)), f"{bucket}/squares")

    after = open_source(f"{bucket}/squares")

    assert before.info.revision != after.info.revision == open_source(local).info.revision
    assert len(after.read_columns(after.episodes[0]).action) == 9


def test_a_large_lerobot_dataset_is_opened_from_a_few_rows(
    bucket: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "GATHERED_BYTES", 0)
    local = make_dataset(tmp_path / "squares", lengths=(9,) * 6)
    remote = open_source(upload(local, f"{bucket}/squares"))

    assert len([name for name in cached(cache) if name.endswith(".parquet")]) == 3
    assert remote.info.revision.startswith("listing:")
    assert everything(remote, [FRONT]) == everything(open_source(local), [FRONT])


@pytest.fixture(params=[False, True], ids=["plain", "gzip"])
def rlds(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Six episodes in three shards."""
    records = [serialize(episode(COMMON | SHAPES["droid"], seed)) for seed in range(6)]
    parts = [records[:2], records[2:5], records[5:]]
    return write(tmp_path / "droid/1.0.0", "droid", parts, compress=request.param)


WRIST = "observation/wrist_image_left"


def test_an_rlds_dataset_on_s3_is_its_local_copy(bucket: str, cache: Path, rlds: Path) -> None:
    local, remote = open_source(rlds), open_source(upload(rlds, f"{bucket}/droid/1.0.0"))
    assert remote.info == local.info
    assert everything(remote, [WRIST]) == everything(local, [WRIST])


def test_a_large_rlds_dataset_is_opened_from_its_first_shard_alone(
    bucket: str, cache: Path, rlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("files.object_store.GATHERED_BYTES", "sources.rlds.opening.COUNTED_BYTES"):
        monkeypatch.setattr(f"molmoact_data.{limit}", 0)
    local, remote = open_source(rlds), open_source(upload(rlds, f"{bucket}/droid/1.0.0"))

    assert [n for n in cached(cache) if "tfrecord" in n] == ["droid-train.tfrecord-00000-of-00003"]
    assert remote.info.revision.startswith("1.0.0+listing:")
    assert len(remote.episodes) == 6
    ours, theirs = (
        [part for part in everything(s, [WRIST]) if isinstance(part[0], bytes)]
        for s in (remote, local)
    )
    assert ours == theirs


def test_a_shard_with_fewer_records_than_declared_rejects_the_missing_by_name(
    bucket: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "GATHERED_BYTES", 0)
    records = [serialize(episode(COMMON | SHAPES["droid"], seed)) for seed in range(2)]
    root = write(tmp_path / "d", "droid", [records], declared=[3])
    source = open_source(upload(root, f"{bucket}/d"))
    with pytest.raises(EpisodeRejected, match=r"rows_unreadable.*ends before record 2"):
        source.read_columns(source.episodes[2])


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_any_url_that_fsspec_knows(scheme: str, cache: Path, tmp_path: Path) -> None:
    local = make_v3_dataset(tmp_path / "squares")
    url = f"file://{local}" if scheme == "file" else upload(local, "memory://robots/squares")
    source = open_source(url)
    assert source.info == open_source(local).info
    assert everything(source, [FRONT]) == everything(open_source(local), [FRONT])
    assert cache.exists() == (scheme == "memory")  # a local file is not copied


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-such-bucket/data", "bucket does not exist"),
        ("s3://robots/no/such/prefix", "no such bucket or prefix"),
        ("s3://robots/other", "not a dataset that can be read"),
        ("teleport://robots/data", "Protocol not known: teleport"),
        ("file:///no/such/folder", "no such folder"),
    ],
)
def test_a_wrong_address_is_one_line(bucket: str, cache: Path, url: str, message: str) -> None:
    fsspec.filesystem("s3").pipe_file("robots/other/readme.txt", b"hello")
    with pytest.raises(UserError, match=message) as raised:
        open_source(url)
    assert "\n" not in str(raised.value)


def test_a_revision_of_a_bucket_is_a_mistake(bucket: str) -> None:
    with pytest.raises(UserError, match="only be asked of the Hub"):
        open_source(f"{bucket}/squares", revision="main")


def test_no_credentials_says_so(bucket: str, cache: Path, no_credentials: None) -> None:
    with pytest.raises(UserError, match=r"Unable to locate credentials.*AWS_PROFILE"):
        open_source(f"{bucket}/squares")


@pytest.mark.parametrize(
    ("url", "driver", "message"),
    [
        ("s3://robots/data", "s3fs", r"pip install 'molmoact\[s3\]'"),
        ("gs://robots/data", "gcsfs", "install gcsfs"),
    ],
)
def test_a_missing_driver_names_what_to_install(
    url: str, driver: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    known = sys.modules["fsspec.registry"]._registry  # another test may have loaded the driver
    monkeypatch.delitem(known, url.partition(":")[0], raising=False)
    with pytest.raises(UserError, match=message) as raised:
        open_source(url)
    assert "\n" not in str(raised.value)


def test_a_store_that_fails_in_mid_run_ends_the_run_and_blames_no_episode(
    bucket: str, cache: Path, tmp_path: Path
) -> None:
    url = upload(make_dataset(tmp_path / "squares"), f"{bucket}/squares")
    source = open_source(url)
    fsspec.filesystem("s3").rm(f"{url}/videos", recursive=True)
    with pytest.raises(UserError, match="does not exist"):
        list(source.iter_frames(source.episodes[0], [FRONT], 8))


def test_a_full_disk_ends_the_run_and_blames_no_episode(
    bucket: str, cache: Path, rlds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_source(upload(rlds, f"{bucket}/droid"))
    source = pickle.loads(pickle.dumps(opened))  # another worker, with no file open
    shutil.rmtree(cache)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"no space left to fetch s3://.*MOLMOACT_CACHE.*--resume"):
        source.read_columns(source.episodes[5])


def test_a_companion_cannot_link_a_bucket(make_output: Any, bucket: str, tmp_path: Path) -> None:
    from molmoact_data.exporters import ExportOptions, export

    options = ExportOptions(source=f"{bucket}/squares")
    with pytest.raises(UserError, match="must be a local folder"):
        export(make_output(), tmp_path / "x", "molmoact2-depth", options, overwrite=False)


def test_the_pixels_are_those_that_were_uploaded(bucket: str, cache: Path, tmp_path: Path) -> None:
    """Against the file itself, not against our own local reader."""
    import av

    local = make_dataset(tmp_path / "squares", lengths=(6,))
    source = open_source(upload(local, f"{bucket}/squares"))
    rgb = np.concatenate(
        [b[FRONT].rgb_NHWC for b in source.iter_frames(source.episodes[0], [FRONT], 4)]
    )
    with av.open(str(next(local.rglob("*.mp4")))) as file:
        expected = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    np.testing.assert_array_equal(rgb, expected)
