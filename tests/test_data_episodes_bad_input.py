"""Every way a LeRobot dataset can be wrong has a name: a reject of the episode, or one clear error.

The datasets are written here by hand in the v2.1 and v3.0 layouts, not with LeRobot, since LeRobot
refuses to write most of them.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import EpisodeRejected, RejectReason, UserError
from molmoact_data.sources.base import EpisodeSource
from molmoact_data.sources.opening import open_source

FPS, LENGTHS, HEIGHT, WIDTH = 10, (6, 4), 32, 48
CAMERA, DEPTH = "observation.images.front", "observation.images.front_depth"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
DATA = "data/chunk-000/episode_{:06d}.parquet"
VIDEO = "videos/chunk-000/" + CAMERA + "/episode_{:06d}.mp4"


def rows(episode: int, length: int, first_index: int = 0) -> dict[str, Any]:
    steps = np.arange(length)
    return {
        "action": (steps[:, None] + np.arange(3) + 100 * episode).astype(np.float32).tolist(),
        "observation.state": np.full((length, 2), episode, np.float32).tolist(),
        "timestamp": (steps / FPS).astype(np.float32),
        "frame_index": steps,
        "episode_index": np.full(length, episode),
        "index": steps + first_index,
        "task_index": np.full(length, episode),
    }


def pixels(episode: int, length: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(episode)
    return rng.integers(0, 255, (length, HEIGHT, WIDTH, 3)).astype(np.uint8)


def write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "4", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def encode(array: NDArray[np.generic], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


def write_json_lines(path: Path, objects: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))


def write_table(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def features(camera_dtype: str) -> dict[str, Any]:
    numbers = {"action": 3, "observation.state": 2, "timestamp": 1, "task_index": 1}
    return {
        CAMERA: {"dtype": camera_dtype, "shape": [HEIGHT, WIDTH, 3], "names": ["height", "width", "channels"]},
        **{k: {"dtype": "float32", "shape": [n], "names": None} for k, n in numbers.items()},
    }  # fmt: skip


class Dataset:
    """A v2.1 dataset on disk, two episodes with two tasks, and how to spoil it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for episode, length in enumerate(LENGTHS):
            write_table(root / DATA.format(episode), rows(episode, length))
            write_video(root / VIDEO.format(episode), pixels(episode, length))
        (root / "meta").mkdir()
        self.write_info()
        self.write_tasks(["push", "pull"])
        listed = [
            {"episode_index": i, "tasks": [["push", "pull"][i]], "length": n}
            for i, n in enumerate(LENGTHS)
        ]
        write_json_lines(root / "meta/episodes.jsonl", listed)

    def write_info(self, **changes: Any) -> None:
        info = {
            "codebase_version": "v2.1", "fps": FPS, "total_episodes": 2, "total_frames": 10, "chunks_size": 1000,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
            "features": features("video"),
        }  # fmt: skip
        (self.root / "meta/info.json").write_text(json.dumps(info | changes))

    def write_tasks(self, tasks: list[str]) -> None:
        lines = [{"task_index": i, "task": text} for i, text in enumerate(tasks)]
        write_json_lines(self.root / "meta/tasks.jsonl", lines)

    def set_rows(self, **changes: Any) -> None:
        """Rewrite episode 0 with other columns; None removes one."""
        columns = rows(0, LENGTHS[0]) | changes
        columns = {k: v for k, v in columns.items() if v is not None}
        write_table(self.root / DATA.format(0), columns)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "cups")


def consume(source: EpisodeSource, position: int) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    """Instructions and frames of one episode, as a pipeline takes them."""
    ref = source.episodes[position]
    columns = source.read_columns(ref)
    key = source.info.cameras[0].key
    frames = np.concatenate([b[key].rgb_NHWC for b in source.iter_frames(ref, [key], 4)])
    assert len(frames) == len(columns.action)
    return columns.instructions, frames


def test_the_dataset_is_good_before_it_is_spoilt(dataset: Dataset) -> None:
    source = open_source(dataset.root)
    assert source.info.warnings == ()
    assert source.info.name == "cups"
    for episode, (task, length) in enumerate(zip(("push", "pull"), LENGTHS, strict=True)):
        instructions, frames = consume(source, episode)
        assert instructions == (task,) * length
        assert np.abs(frames.astype(int).mean() - pixels(episode, length).mean()) < 5


def with_number(value: float) -> list[list[float]]:
    action = rows(0, LENGTHS[0])["action"]
    action[3][1] = value
    return action


def ragged() -> list[list[float]]:
    action = rows(0, LENGTHS[0])["action"]
    return [*action[:-1], [1.0, 2.0]]


SPOILS: dict[str, tuple[Callable[[Dataset], object], RejectReason]] = {
    "mp4 missing": (lambda d: (d.root / VIDEO.format(0)).unlink(), RejectReason.VIDEO_MISSING),
    "mp4 empty": (lambda d: (d.root / VIDEO.format(0)).write_bytes(b""), RejectReason.VIDEO_EMPTY),
    "mp4 is a pointer": (
        lambda d: (d.root / VIDEO.format(0)).write_bytes(LFS_POINTER), RejectReason.VIDEO_GIT_LFS_POINTER),
    "mp4 truncated": (
        lambda d: (d.root / VIDEO.format(0)).write_bytes((d.root / VIDEO.format(0)).read_bytes()[:3000]),
        RejectReason.VIDEO_UNDECODABLE),
    "video shorter": (
        lambda d: write_video(d.root / VIDEO.format(0), pixels(0, 5)), RejectReason.VIDEO_SHORTER_THAN_ROWS),
    "video longer": (
        lambda d: write_video(d.root / VIDEO.format(0), pixels(0, 7)), RejectReason.VIDEO_LONGER_THAN_ROWS),
    "rows missing": (lambda d: (d.root / DATA.format(0)).unlink(), RejectReason.ROWS_MISSING),
    "rows are a pointer": (
        lambda d: (d.root / DATA.format(0)).write_bytes(LFS_POINTER), RejectReason.ROWS_UNREADABLE),
    "no rows": (lambda d: write_table(d.root / DATA.format(0), rows(0, 0)), RejectReason.ROWS_EMPTY),
    "rows shuffled": (
        lambda d: d.set_rows(frame_index=[0, 2, 1, 3, 4, 5]), RejectReason.ROWS_OUT_OF_ORDER),
    "time stands still": (lambda d: d.set_rows(timestamp=np.zeros(6)), RejectReason.ROWS_OUT_OF_ORDER),
    "time is not a number": (
        lambda d: d.set_rows(timestamp=[0, 0.1, np.nan, 0.3, 0.4, 0.5]), RejectReason.ROWS_OUT_OF_ORDER),
    "nan action": (lambda d: d.set_rows(action=with_number(np.nan)), RejectReason.ACTION_NON_FINITE),
    "infinite action": (lambda d: d.set_rows(action=with_number(-np.inf)), RejectReason.ACTION_NON_FINITE),
    "null action": (
        lambda d: d.set_rows(action=[None, *rows(0, 5)["action"]]), RejectReason.ACTION_DIMENSION_DIFFERS),
    "other action dimension": (
        lambda d: d.set_rows(action=np.zeros((6, 4), np.float32).tolist()), RejectReason.ACTION_DIMENSION_DIFFERS),
    "ragged action": (lambda d: d.set_rows(action=ragged()), RejectReason.ACTION_DIMENSION_DIFFERS),
    "no action": (lambda d: d.set_rows(action=None), RejectReason.COLUMN_MISSING),
    "nan state": (
        lambda d: d.set_rows(**{"observation.state": [[np.nan, 0.0]] * 6}), RejectReason.STATE_NON_FINITE),
    "other state dimension": (
        lambda d: d.set_rows(**{"observation.state": [[0.0]] * 6}), RejectReason.STATE_DIMENSION_DIFFERS),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILS)
def test_a_spoilt_episode_is_rejected_by_name_and_its_neighbour_is_read(
    dataset: Dataset, name: str
) -> None:
    spoil, reason = SPOILS[name]
    spoil(dataset)
    source = open_source(dataset.root)
    with pytest.raises(EpisodeRejected) as caught:
        consume(source, 0)
    assert caught.value.reason is reason
    assert caught.value.detail
    assert consume(source, 1)[0] == ("pull",) * LENGTHS[1]


def test_a_blank_instruction_is_rejected_never_defaulted(dataset: Dataset) -> None:
    dataset.write_tasks(["  ", "pull"])
    write_json_lines(dataset.root / "meta/episodes.jsonl", [{"episode_index": i} for i in (0, 1)])
    source = open_source(dataset.root)
    with pytest.raises(
        EpisodeRejected, match="task 0 of row 0 is not in meta/tasks or is blank"
    ) as caught:
        consume(source, 0)
    assert caught.value.reason is RejectReason.INSTRUCTION_MISSING
    assert consume(source, 1)[0][0] == "pull"


def test_task_text_is_found_in_every_known_place(dataset: Dataset) -> None:
    assert consume(open_source(dataset.root), 0)[0] == ("push",) * 6
    tasks = np.array([0, 0, 0, 1, 1, 1])  # several tasks in one episode, frame by frame
    dataset.set_rows(task_index=tasks)
    with pytest.raises(EpisodeRejected, match="the episode's metadata lists 'push'") as caught:
        consume(open_source(dataset.root), 0)
    assert caught.value.reason is RejectReason.INSTRUCTION_AMBIGUOUS
    listed = [{"episode_index": 0, "tasks": ["push", "pull"], "length": 6}]
    write_json_lines(dataset.root / "meta/episodes.jsonl", listed)
    assert consume(open_source(dataset.root), 0)[0] == ("push",) * 3 + ("pull",) * 3
    listed[0]["tasks"] = ["push"]
    write_json_lines(dataset.root / "meta/episodes.jsonl", listed)
    dataset.set_rows(task_index=None)  # the episode's own metadata
    assert consume(open_source(dataset.root), 0)[0] == ("push",) * 6
    listed[0]["tasks"] = []
    write_json_lines(dataset.root / "meta/episodes.jsonl", listed)
    for column in ("language_instruction", "task"):
        dataset.set_rows(task_index=None, **{column: ["lift"] * 6})
        assert consume(open_source(dataset.root), 0)[0] == ("lift",) * 6


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"total_frames": 14983}, "declares 14983 frames, the rows are 10"),
        ({"total_episodes": 50}, "declares 50 episodes and lists 2"),
        ({"fps": 30}, "says 30 fps, the rows' clock runs at 10"),
        ({"features": features("video") | {"action": {"dtype": "float32", "shape": [8]}}},
         "'action' has 8 values, the rows have 3"),
    ],
)  # fmt: skip
def test_metadata_that_lies_is_reported_and_rows_are_trusted(
    dataset: Dataset, changes: dict[str, Any], warning: str
) -> None:
    dataset.write_info(**changes)
    source = open_source(dataset.root)
    assert [w for w in source.info.warnings if warning in w], source.info.warnings
    assert (source.info.fps, source.info.action_dim) == (FPS, 3)
    for position, length in enumerate(LENGTHS):
        assert len(consume(source, position)[1]) == length


def test_a_wrong_length_is_rejected_with_all_numbers_and_an_undeclared_episode_is_read(
    dataset: Dataset,
) -> None:
    write_json_lines(dataset.root / "meta/episodes.jsonl", [{"episode_index": 0, "length": 99}])
    source = open_source(dataset.root)
    assert any("episode 0 declares 99 frames and has 6 rows" in w for w in source.info.warnings)
    numbers = r"6 rows in .*episode_000000.parquet, 99 rows declared, 6 pictures of"
    with pytest.raises(EpisodeRejected, match=numbers) as caught:
        source.read_columns(source.episodes[0])
    assert caught.value.reason is RejectReason.LENGTHS_DISAGREE
    assert consume(source, 1)[0][0] == "pull"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d.root / "meta/info.json").unlink(), "not a dataset that can be read"),
        (lambda d: (d.root / "meta/info.json").write_bytes(LFS_POINTER), "is not JSON"),
        (lambda d: (d.root / "meta/tasks.jsonl").write_text("{"), r"tasks\.jsonl.*line 1 is not JSON"),
        (lambda d: d.write_info(codebase_version="v1.6"), "is LeRobot v1.6; v2.0, v2.1, v3.0 can be read"),
        (lambda d: [(d.root / DATA.format(i)).unlink() for i in (0, 1)], "rows of no episode can be read"),
        (lambda d: [d.set_rows(action=None), (d.root / DATA.format(1)).unlink()], "no action column"),
    ],
)  # fmt: skip
def test_what_is_wrong_as_a_whole_is_one_error_before_any_work(
    dataset: Dataset, spoil: Callable[[Dataset], object], message: str
) -> None:
    spoil(dataset)
    with pytest.raises(UserError, match=message):
        open_source(dataset.root)


def test_paths_that_are_no_dataset(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(UserError, match="no such path"):
        open_source(tmp_path / "nothing" / "here")
    with pytest.raises(UserError, match=r"Datasets inside it: .*cups"):
        open_source(dataset.root.parent)
    with pytest.raises(UserError, match="is a file"):
        open_source(dataset.root / "meta/info.json")
    with pytest.raises(UserError, match="revision can only be asked of the Hub"):
        open_source(dataset.root, revision="main")


def test_the_revision_follows_content_not_place(dataset: Dataset, tmp_path: Path) -> None:
    revision = open_source(dataset.root).info.revision
    dataset.root.rename(tmp_path / "moved")
    dataset.root = tmp_path / "moved"
    assert open_source(dataset.root).info.revision == revision
    dataset.set_rows(action=with_number(0.25))
    assert open_source(dataset.root).info.revision != revision


def image_cells(frames: NDArray[np.generic], kind: str) -> pa.Array:
    cells = [{"bytes": encode(f, kind), "path": f"frame_{i:06d}.png"} for i, f in enumerate(frames)]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def test_images_in_rows_are_passed_through_and_depth_keeps_its_units(dataset: Dataset) -> None:
    depth = np.random.default_rng(3).integers(0, 2**16, (6, HEIGHT, WIDTH)).astype(np.uint16)
    depth_feature = {"dtype": "image", "shape": [HEIGHT, WIDTH, 1], "info": {"is_depth_map": True}}
    dataset.write_info(features=features("image") | {DEPTH: depth_feature})
    colour = image_cells(pixels(0, 6), "JPEG")
    dataset.set_rows(**{CAMERA: colour, DEPTH: image_cells(depth, "PNG")})
    source = open_source(dataset.root)
    assert [(c.key, c.is_depth) for c in source.info.cameras] == [(CAMERA, False), (DEPTH, True)]
    batches = list(source.iter_frames(source.episodes[0], [CAMERA, DEPTH], 4))
    np.testing.assert_array_equal(np.concatenate([b[DEPTH].rgb_NHWC for b in batches]), depth)
    assert batches[0][DEPTH].rgb_NHWC.dtype == np.uint16
    encoded = [e for b in batches for e in b[CAMERA].encoded or ()]
    assert encoded == [cell["bytes"] for cell in colour.to_pylist()]
    plain = np.stack([np.asarray(Image.open(io.BytesIO(e))) for e in encoded])
    np.testing.assert_array_equal(np.concatenate([b[CAMERA].rgb_NHWC for b in batches]), plain)


def test_images_in_files_beside_the_rows(dataset: Dataset) -> None:
    dataset.write_info(features=features("image"))
    folder = dataset.root / "images" / CAMERA / "episode_000000"
    folder.mkdir(parents=True)
    for i, frame in enumerate(pixels(0, 6)):
        (folder / f"frame_{i:06d}.png").write_bytes(encode(frame))
    frames = consume(open_source(dataset.root), 0)[1]
    np.testing.assert_array_equal(frames, pixels(0, 6))
    (folder / "frame_000004.png").unlink()
    with pytest.raises(EpisodeRejected, match=r"image_missing.*frame_000004"):
        consume(open_source(dataset.root), 0)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"bytes": b"not an image", "path": None}, RejectReason.IMAGE_UNDECODABLE),
        ({"bytes": encode(pixels(0, 1)[0])[:200], "path": None}, RejectReason.IMAGE_UNDECODABLE),
        ({"bytes": None, "path": None}, RejectReason.IMAGE_MISSING),
        (
            {"bytes": encode(np.zeros((8, 8, 3), np.uint8)), "path": None},
            RejectReason.VIDEO_SIZE_CHANGED,
        ),
    ],
)
def test_spoilt_images_are_rejected_by_name(
    dataset: Dataset, spoil: dict[str, Any], reason: RejectReason
) -> None:
    dataset.write_info(features=features("image"))
    cells = image_cells(pixels(0, 6), "PNG").to_pylist()
    cells[5] = spoil
    dataset.set_rows(
        **{CAMERA: pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
    )
    with pytest.raises(EpisodeRejected) as caught:
        consume(open_source(dataset.root), 0)
    assert caught.value.reason is reason


def test_bytes_that_are_not_plain_rgb_are_decoded_and_not_passed_on(dataset: Dataset) -> None:
    dataset.write_info(features=features("image"))
    with_alpha = np.concatenate([pixels(0, 6), np.full((6, HEIGHT, WIDTH, 1), 7, np.uint8)], axis=3)
    dataset.set_rows(**{CAMERA: image_cells(with_alpha, "PNG")})
    source = open_source(dataset.root)
    (batch,) = source.iter_frames(source.episodes[0], [CAMERA], 10)
    assert batch[CAMERA].encoded is None
    np.testing.assert_array_equal(batch[CAMERA].rgb_NHWC, pixels(0, 6))


def write_v3(
    root: Path, task_column: str, *, spans: list[tuple[float, float]], one_row_group: bool
) -> Path:
    """Both episodes in one Parquet file and one mp4."""
    tables = [pa.table(rows(i, n, first_index=6 * i)) for i, n in enumerate(LENGTHS)]
    (root / "data/chunk-000").mkdir(parents=True)
    with pq.ParquetWriter(root / "data/chunk-000/file-000.parquet", tables[0].schema) as writer:
        for table in [pa.concat_tables(tables)] if one_row_group else tables:
            writer.write_table(table)
    video = np.concatenate([pixels(i, n) for i, n in enumerate(LENGTHS)])
    write_video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", video)
    zeros = [0, 0]
    write_table(
        root / "meta/episodes/chunk-000/file-000.parquet",
        {
            "episode_index": [0, 1], "length": list(LENGTHS), "tasks": [["push"], ["pull"]],
            "data/chunk_index": zeros, "data/file_index": zeros,
            f"videos/{CAMERA}/chunk_index": zeros, f"videos/{CAMERA}/file_index": zeros,
            f"videos/{CAMERA}/from_timestamp": [a for a, _ in spans],
            f"videos/{CAMERA}/to_timestamp": [b for _, b in spans],
            "stats/action/min": [[0.0], [0.0]],
        },
    )  # fmt: skip
    write_table(root / "meta/tasks.parquet", {"task_index": [0, 1], task_column: ["push", "pull"]})
    info = {"codebase_version": "v3.0", "fps": FPS, "features": features("video")}
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.fixture(params=[True, False], ids=["one row group", "a row group per episode"])
def shared_files(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Callable[..., EpisodeSource]]:
    def make(
        task_column: str = "task", spans: tuple[tuple[float, float], ...] = ((0, 0.6), (0.6, 1.0))
    ) -> Any:
        root = write_v3(
            tmp_path / "v3", task_column, spans=list(spans), one_row_group=request.param
        )
        return open_source(root)

    return make


@pytest.mark.parametrize("task_column", ["task", "__index_level_0__", "whatever"])
def test_v3_cuts_episodes_out_of_shared_files(
    shared_files: Callable[..., EpisodeSource], dataset: Dataset, task_column: str
) -> None:
    source, twin = shared_files(task_column), open_source(dataset.root)
    for position in (1, 0, 1):  # any order
        instructions, frames = consume(source, position)
        assert instructions == (("push", "pull")[position],) * LENGTHS[position]
        action = source.read_columns(source.episodes[position]).action
        np.testing.assert_array_equal(action, twin.read_columns(twin.episodes[position]).action)
        expected = pixels(position, LENGTHS[position])
        assert [
            int(np.abs(expected - f.astype(int)).mean(axis=(1, 2, 3)).argmin()) for f in frames
        ] == list(range(LENGTHS[position]))


def test_v3_spans_that_disagree_with_the_rows_never_borrow_the_neighbours_frames(
    shared_files: Callable[..., EpisodeSource],
) -> None:
    source = shared_files(spans=((0, 0.4), (0.4, 1.0)))
    for position, reason in ((0, "VIDEO_SHORTER_THAN_ROWS"), (1, "VIDEO_LONGER_THAN_ROWS")):
        with pytest.raises(EpisodeRejected) as caught:
            consume(source, position)
        assert caught.value.reason is RejectReason[reason]


def test_a_hub_dataset_is_fetched_metadata_and_rows_first_and_videos_when_needed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from httpx import Request, Response
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError

    cache, commit, fetched = tmp_path / "cache" / ("a" * 40), "a" * 40, []
    (dataset.root / VIDEO.format(1)).unlink()  # listed by the Hub, gone when asked for
    names = [p.relative_to(dataset.root).as_posix() for p in dataset.root.rglob("*") if p.is_file()]
    names.append(VIDEO.format(1))

    def dataset_info(_self: object, _repo: str, **_: object) -> SimpleNamespace:
        return SimpleNamespace(sha=commit, siblings=[SimpleNamespace(rfilename=n) for n in names])

    def fetch(name: str) -> str:
        fetched.append(name)
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(dataset.root / name, cache / name)
        return str(cache / name)

    def snapshot_download(
        _repo: str, *, allow_patterns: list[str], revision: str, **_: object
    ) -> str:
        assert revision in ("main", commit)
        folders = tuple(pattern.removesuffix("**") for pattern in allow_patterns)
        for name in names:
            if name.startswith(folders):
                fetch(name)
        return str(cache)

    def hf_hub_download(_repo: str, name: str, *, repo_type: str, revision: str) -> str:
        assert (repo_type, revision) == ("dataset", commit)
        if not (dataset.root / name).exists():
            response = Response(404, request=Request("GET", f"https://huggingface.co/{name}"))
            raise RemoteEntryNotFoundError(name, response=response)
        return fetch(name)

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    source = open_source("lab/cups", revision="main")
    assert (source.info.name, source.info.revision, source.info.warnings) == (
        "lab/cups",
        commit,
        (),
    )
    assert not [name for name in fetched if name.endswith(".mp4")]
    assert consume(source, 0)[0] == ("push",) * 6
    assert [name for name in fetched if name.endswith(".mp4")] == [VIDEO.format(0)]
    with pytest.raises(EpisodeRejected) as caught:
        consume(source, 1)
    assert caught.value.reason is RejectReason.VIDEO_MISSING


def test_a_hub_dataset_without_a_network_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import HfApi, constants

    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot reach the Hub.*hf download lab/cups"):
        open_source("lab/cups")
