"""Our reader against LeRobot's own `LeRobotDataset`, on datasets that LeRobot itself wrote.

The `pyav` backend is asked for: it is LeRobot's documented fallback, needs no system FFmpeg, and is
the conversion that we promise to equal bit by bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import SHARED_DATA
from numpy.typing import NDArray

from molmoact_data.sources.base import EpisodeSource
from molmoact_data.sources.opening import open_source

lerobot_dataset = pytest.importorskip(
    "lerobot.datasets.lerobot_dataset", reason="lerobot is not installed"
)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

ROOT = Path(__file__).resolve().parent.parent
CAMERAS = ("observation.images.front", "observation.images.wrist")
TASKS = ("put the cup on the shelf", "öffne die Schublade", "put the cup on the shelf")
LENGTHS = (9, 5, 11)


def as_u8(image: Any) -> NDArray[np.uint8]:
    """LeRobot's float [3,H,W] in 0..1 back to what was decoded; exact, since it only divided by 255."""
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def all_frames(source: EpisodeSource, key: str, batch_size: int) -> NDArray[np.uint8]:
    batches = (
        b[key].rgb_NHWC
        for ref in source.episodes
        for b in source.iter_frames(ref, [key], batch_size)
    )
    return np.concatenate(list(batches))


@pytest.fixture(scope="module", params=["video", "image"])
def written_by_lerobot(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """(LeRobotDataset, folder): three episodes, two cameras of different sizes, two tasks, LeRobot's defaults."""
    root = tmp_path_factory.mktemp("lerobot") / "dataset"
    shapes = {CAMERAS[0]: (64, 96, 3), CAMERAS[1]: (48, 64, 3)}
    names = ["height", "width", "channels"]
    features = {k: {"dtype": request.param, "shape": s, "names": names} for k, s in shapes.items()}
    features["action"] = {
        "dtype": "float32",
        "shape": (6,),
        "names": [f"joint_{i}" for i in range(6)],
    }
    features["observation.state"] = {"dtype": "float32", "shape": (4,), "names": None}
    features["extra.point"] = {"dtype": "float32", "shape": (2, 2), "names": None}
    dataset = lerobot_dataset.LeRobotDataset.create(
        "test/tiny",
        10,
        features,
        root=root,
        use_videos=request.param == "video",
        video_backend="pyav",
    )
    rng = np.random.default_rng(0)
    for task, length in zip(TASKS, LENGTHS, strict=True):
        for t in range(length):
            frame: dict[str, Any] = {
                key: np.clip(rng.integers(0, 256, shape) // 4 + 8 * t, 0, 255).astype(np.uint8)
                for key, shape in shapes.items()
            }
            frame["action"] = rng.normal(size=6).astype(np.float32)
            frame["observation.state"] = rng.normal(size=4).astype(np.float32)
            frame["extra.point"] = rng.random((2, 2)).astype(np.float32)
            dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
    dataset.finalize()
    return lerobot_dataset.LeRobotDataset("test/tiny", root=root, video_backend="pyav"), root


def test_every_frame_and_row_equals_lerobot(written_by_lerobot: Any) -> None:
    theirs, root = written_by_lerobot
    source = open_source(root)
    assert source.info.warnings == ()
    assert [ref.num_frames for ref in source.episodes] == list(LENGTHS)
    assert (source.info.action_dim, source.info.state_dim, source.info.fps) == (6, 4, 10)
    assert source.info.action_names == tuple(f"joint_{i}" for i in range(6))
    assert "extra.point" in source.info.columns
    items = [theirs[i] for i in range(sum(LENGTHS))]
    for key in CAMERAS:
        ours = all_frames(source, key, batch_size=4)
        np.testing.assert_array_equal(ours, np.stack([as_u8(item[key]) for item in items]))
    columns = [source.read_columns(ref, extra=["extra.point"]) for ref in source.episodes]
    for name, theirs_name in (
        ("action", "action"),
        ("state", "observation.state"),
        ("timestamp_s", "timestamp"),
    ):
        ours = np.concatenate([getattr(c, name) for c in columns])
        np.testing.assert_array_equal(ours, np.stack([item[theirs_name].numpy() for item in items]))
    points = np.concatenate([c.extra["extra.point"] for c in columns])
    np.testing.assert_array_equal(points, np.stack([item["extra.point"].numpy() for item in items]))
    assert [t for c in columns for t in c.instructions] == [item["task"] for item in items]


def test_cameras_come_in_lockstep_and_stored_images_are_passed_through(
    written_by_lerobot: Any,
) -> None:
    theirs, root = written_by_lerobot
    source = open_source(root)
    batches = list(source.iter_frames(source.episodes[2], CAMERAS, 4))
    assert [len(batch[key].rgb_NHWC) for batch in batches for key in CAMERAS] == [4, 4, 4, 4, 3, 3]
    encoded = batches[0][CAMERAS[0]].encoded
    if source.info.cameras[0].storage == "video":
        assert encoded is None
    else:
        cell = theirs.hf_dataset.with_format("arrow")[sum(LENGTHS[:2])][CAMERAS[0]][0].as_py()
        assert encoded is not None
        assert encoded[0] == cell["bytes"]


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"real input is not at {SHARED_DATA}")
@pytest.mark.parametrize("version", ["v21", "v30"])
def test_real_episodes_equal_lerobot_at_every_border(version: str) -> None:
    theirs = lerobot_dataset.LeRobotDataset(
        "test/real", root=SHARED_DATA / "libero_rollouts_v30", video_backend="pyav"
    )
    key = "observation.images.image"
    ours = all_frames(open_source(SHARED_DATA / f"libero_rollouts_{version}"), key, batch_size=64)
    assert len(ours) == len(theirs) == 669
    borders = [0, 1, 63, 64, 115, 116, 215, 216, 335, 336, 559, 560, 667, 668]
    for i in sorted({*borders, *range(0, 669, 31)}):
        np.testing.assert_array_equal(ours[i], as_u8(theirs[i][key]), err_msg=f"frame {i}")
