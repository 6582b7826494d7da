"""Sequential decoding against the same file decoded frame by frame with PyAV; damage has a name."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from made_priority import be_ordinary
from numpy.typing import NDArray

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.video.clip import VideoClip, iter_video, match_frames
from molmoact_data.sources.video.threads import stretch_starts

FPS, FRAMES, HEIGHT, WIDTH = 10, 40, 48, 64
TIMES = (np.arange(FRAMES) / FPS).astype(np.float32)


def write_video(
    path: Path, frames: NDArray[np.generic], codec: str, pixel_format: str, **options: str
) -> Path:
    """An mp4 with its index in front, so that a file cut in the middle still opens."""
    source_format = "rgb24" if frames.ndim == 4 else "gray16le"
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixel_format
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format=source_format)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def noise(num_frames: int = FRAMES) -> NDArray[np.uint8]:
    base = np.random.default_rng(0).integers(0, 200, (HEIGHT, WIDTH, 3))
    return np.stack([np.roll(base + t, t, axis=1) for t in range(num_frames)]).astype(np.uint8)


@pytest.fixture(scope="module", params=["h264", "h264-with-b-frames", "av1"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = {
        "h264": ("libx264", {"g": "12", "bf": "0"}),
        "h264-with-b-frames": ("libx264", {"g": "12", "bf": "3"}),
        "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "12"}),
    }[request.param]
    path = tmp_path_factory.mktemp("video") / f"{request.param}.mp4"
    write_video(path, noise(), codec, "yuv420p", **options)
    be_ordinary()
    return path


def decode(
    clip: VideoClip, times: NDArray[np.float32], batch_size: int = 7, threads: int = 1
) -> NDArray[np.generic]:
    return np.concatenate(
        list(iter_video(clip, times, fps=FPS, batch_size=batch_size, threads=threads))
    )


def reject(clip: VideoClip, times: NDArray[np.float32]) -> EpisodeRejected:
    with pytest.raises(EpisodeRejected) as caught:
        decode(clip, times)
    return caught.value


def test_frames_equal_a_plain_loop_over_the_file(video: Path) -> None:
    with av.open(str(video)) as container:
        plain = np.stack([frame.to_rgb().to_ndarray() for frame in container.decode(video=0)])
    for batch_size, threads in ((1, 1), (7, 1), (7, 2), (1, 3), (5, 4), (100, 2)):
        np.testing.assert_array_equal(decode(VideoClip(video), TIMES, batch_size, threads), plain)


@pytest.mark.parametrize("first", [0, 1, 12, 17, 39])
def test_a_part_of_a_shared_file_is_cut_exactly(video: Path, first: int) -> None:
    whole = decode(VideoClip(video), TIMES)
    last = min(first + 9, FRAMES)
    clip = VideoClip(video, first / FPS, last / FPS)
    np.testing.assert_array_equal(decode(clip, TIMES[: last - first]), whole[first:last])


def test_rows_off_by_less_than_half_a_frame_take_the_nearest_frame(video: Path) -> None:
    whole = decode(VideoClip(video), TIMES)
    jitter = np.random.default_rng(1).uniform(-0.04, 0.04, FRAMES).astype(np.float32)
    np.testing.assert_array_equal(decode(VideoClip(video), TIMES + jitter), whole)


def test_shorter_and_longer_videos_are_rejected_by_name(video: Path) -> None:
    more_rows = (np.arange(FRAMES + 1) / FPS).astype(np.float32)
    assert reject(VideoClip(video), more_rows).reason is RejectReason.VIDEO_SHORTER_THAN_ROWS
    assert reject(VideoClip(video), TIMES[:-1]).reason is RejectReason.VIDEO_LONGER_THAN_ROWS
    shared = VideoClip(video, 1.0, 2.0)
    assert reject(shared, TIMES[:11]).reason is RejectReason.VIDEO_SHORTER_THAN_ROWS
    assert reject(shared, TIMES[:9]).reason is RejectReason.VIDEO_LONGER_THAN_ROWS
    assert len(decode(shared, TIMES[:10])) == 10


@pytest.mark.timeout(60)
def test_leaving_early_ends_every_decoder_thread(video: Path) -> None:
    before = threading.active_count()
    batches = iter_video(VideoClip(video), TIMES, fps=FPS, batch_size=1, threads=3)
    assert len(next(batches)) == 1
    batches.close()
    assert threading.active_count() == before


def test_stretches_begin_at_keyframes_and_are_about_equal() -> None:
    ticks = np.arange(0, 400, 10)
    keys = np.arange(0, 400, 70)  # rows 0, 7, 14, 21, 28, 35
    assert stretch_starts(ticks, keys, 2) == [0, 21]
    assert stretch_starts(ticks, keys, 4) == [0, 7, 21, 28]
    assert stretch_starts(ticks, keys, 40) == [0, 7, 14, 21, 28, 35]
    assert stretch_starts(ticks, keys[:1], 4) == [0]


def test_a_gap_in_the_rows_clock_is_a_timestamp_mismatch(tmp_path: Path, video: Path) -> None:
    times = TIMES.copy()
    times[20:] += 10.0  # past the end: too short
    assert reject(VideoClip(video), times).reason is RejectReason.VIDEO_SHORTER_THAN_ROWS
    before = VideoClip(video, -0.2)  # before the start: out of step
    assert reject(before, TIMES[:3]).reason is RejectReason.FRAME_TIMESTAMP_MISMATCH


def test_damaged_files_are_rejected_by_name(tmp_path: Path, video: Path) -> None:
    content = video.read_bytes()
    cases = {
        b"": RejectReason.VIDEO_EMPTY,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n": RejectReason.VIDEO_GIT_LFS_POINTER,
        content[:600]: RejectReason.VIDEO_UNDECODABLE,
        content[: len(content) // 2]: RejectReason.VIDEO_UNDECODABLE,
        content[:-30]: RejectReason.VIDEO_UNDECODABLE,
        bytes(5000): RejectReason.VIDEO_UNDECODABLE,
    }
    for number, (damaged, reason) in enumerate(cases.items()):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(damaged)
        assert reject(VideoClip(path), TIMES).reason is reason, number
    assert "truncated" in reject(VideoClip(tmp_path / "3.mp4"), TIMES).detail
    assert reject(VideoClip(tmp_path / "none.mp4"), TIMES).reason is RejectReason.VIDEO_MISSING


def test_depth_video_keeps_its_units(tmp_path: Path) -> None:
    millimetres = np.random.default_rng(2).integers(0, 2**16, (6, HEIGHT, WIDTH)).astype(np.uint16)
    path = write_video(tmp_path / "depth.mkv", millimetres, "ffv1", "gray16le")
    batches = iter_video(VideoClip(path), TIMES[:6], fps=FPS, batch_size=4, is_depth=True)
    depth = np.concatenate(list(batches))
    assert depth.dtype == np.uint16
    np.testing.assert_array_equal(depth, millimetres)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=30, unique=True),
    st.lists(st.integers(-50, 500), min_size=1, max_size=30, unique=True),
    st.integers(0, 60),
)
def test_matching_equals_a_brute_force_search(
    frames: list[int], rows: list[int], limit: int
) -> None:
    frame_times, row_times = np.sort(frames).astype(np.float64), np.sort(rows).astype(np.float64)
    nearest = [int(np.argmin(np.abs(frame_times - t))) for t in row_times]
    near_enough = [
        abs(frame_times[i] - t) <= limit for i, t in zip(nearest, row_times, strict=True)
    ]
    if all(near_enough):
        np.testing.assert_array_equal(match_frames(frame_times, row_times, limit), nearest)
        return
    first_bad = row_times[near_enough.index(False)]
    past_end = first_bad > frame_times[-1]
    with pytest.raises(EpisodeRejected) as caught:
        match_frames(frame_times, row_times, limit)
    expected = "VIDEO_SHORTER_THAN_ROWS" if past_end else "FRAME_TIMESTAMP_MISMATCH"
    assert caught.value.reason is RejectReason[expected]


def test_no_test_leaves_real_time_priority_behind(video: Path) -> None:
    """The fixture `video` encodes AV1, which asks for it."""
    assert video.is_file()
    children = subprocess.run(
        [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(children.stdout) == os.sched_getscheduler(0) == os.SCHED_OTHER
