"""A decoder that dies takes its episode with it, not the worker."""

from __future__ import annotations

import pickle
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import SHARED_DATA

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.base import EpisodeRef
from molmoact_data.sources.isolation import SLOT_BYTES, IsolatedSource
from molmoact_data.sources.opening import open_source

ROOT = Path(__file__).resolve().parent.parent

# A source whose episode number says what its decoder does after the first batch.
FAKE = """
    import os, signal, time
    import numpy as np
    from molmoact_data.sources.base import CameraBatch
    from molmoact_data.errors import EpisodeRejected, RejectReason

    FINE, SEGFAULT, EXIT, HANG, REJECT, BUG, LARGE = range(7)

    class Source:
        info, episodes = None, ()

        def iter_frames(self, ref, keys, batch_size):
            for number in range(5):
                shape = (batch_size, 4, 6, 3)
                if ref.episode_index == LARGE:
                    shape = (1, 2400, 2400, 3)  # the first camera fits into a slot, the second does not
                pixels = np.full(shape, number, np.uint8)
                encoded = (b"jpeg %d" % number,) * batch_size
                yield {key: CameraBatch(pixels + i, encoded) for i, key in enumerate(keys)}
                if ref.episode_index == SEGFAULT:
                    os.kill(os.getpid(), signal.SIGSEGV)
                if ref.episode_index == EXIT:
                    os._exit(139)
                if ref.episode_index == HANG:
                    time.sleep(1000)
                if ref.episode_index == REJECT:
                    raise EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, "frame 7")
                if ref.episode_index == BUG:
                    raise KeyError("a bug")
"""
FINE, SEGFAULT, EXIT, HANG, REJECT, BUG, LARGE = range(7)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IsolatedSource:
    (tmp_path / "fake_decoder.py").write_text(textwrap.dedent(FAKE))
    monkeypatch.syspath_prepend(tmp_path)
    import fake_decoder  # type: ignore[import-not-found]

    return IsolatedSource(fake_decoder.Source(), timeout_s=60)


def consume(source: Any, episode: int) -> list[int]:
    """First pixel of each camera and batch; the batches are kept, so none may be overwritten later."""
    batches = list(source.iter_frames(EpisodeRef(episode, 10), ["a", "b"], 2))
    assert [b["b"].encoded[0] for b in batches] == [b"jpeg %d" % i for i in range(5)]
    for batch in batches:
        for camera in batch.values():
            assert len(np.unique(camera.rgb_NHWC)) == 1
    return [int(camera.rgb_NHWC.flat[0]) for batch in batches for camera in batch.values()]


GOOD = [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]


def test_a_dead_decoder_rejects_its_episode_and_the_next_is_read(source: IsolatedSource) -> None:
    assert consume(source, FINE) == GOOD
    for episode, how in ((SEGFAULT, "SIGSEGV"), (EXIT, "SIGSEGV")):
        with pytest.raises(EpisodeRejected, match=how) as caught:
            consume(source, episode)
        assert caught.value.reason is RejectReason.DECODER_CRASHED
        assert consume(source, FINE) == GOOD


def test_a_hanging_decoder_is_killed(source: IsolatedSource) -> None:
    assert consume(source, FINE) == GOOD  # so that starting up does not count
    source.timeout_s = 0.5
    with pytest.raises(EpisodeRejected, match=r"nothing for 0\.5 s") as caught:
        consume(source, HANG)
    assert caught.value.reason is RejectReason.DECODER_CRASHED


def test_rejects_bugs_and_large_batches_come_through_and_the_child_stays(
    source: IsolatedSource,
) -> None:
    assert consume(source, FINE) == GOOD
    child = source._child
    with pytest.raises(EpisodeRejected, match="video_undecodable: frame 7"):
        consume(source, REJECT)
    assert 2400 * 2400 * 3 < SLOT_BYTES < 2 * 2400 * 2400 * 3
    assert consume(source, LARGE) == GOOD
    assert source._child is child
    with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
        consume(source, BUG)
    assert consume(source, FINE) == GOOD


def test_an_abandoned_episode_leaves_no_process(source: IsolatedSource) -> None:
    frames = source.iter_frames(EpisodeRef(FINE, 10), ["a"], 2)
    next(frames)
    frames.close()
    assert source._child is None
    assert consume(pickle.loads(pickle.dumps(source)), FINE) == GOOD
    consume(source, FINE)
    assert source._child is not None
    pid = source._child._process.pid
    source._child = None
    while Path(f"/proc/{pid}").exists():  # a child that stays is ended by pytest's own limit
        time.sleep(0.05)


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"real input is not at {SHARED_DATA}")
def test_real_frames_are_the_same_with_and_without() -> None:
    path, key = SHARED_DATA / "libero_rollouts_v30", "observation.images.image"
    plain, isolated = open_source(path), open_source(path, isolate=True)
    assert plain.info == isolated.info
    for ref in plain.episodes[:2]:
        pairs = zip(
            plain.iter_frames(ref, [key], 32), isolated.iter_frames(ref, [key], 32), strict=True
        )
        for ours, theirs in pairs:
            np.testing.assert_array_equal(ours[key].rgb_NHWC, theirs[key].rgb_NHWC)
