"""Rows written by several threads leave in order; what stops one of them stops its batch, not those before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from molmoact_data.errors import EpisodeRejected, RejectReason
from molmoact_data.sources.video.threads import ReaderLeft, RowBuffer

pytestmark = pytest.mark.timeout(60)
ROWS, BATCH = 23, 4


def buffer(window: int) -> RowBuffer:
    return RowBuffer(ROWS, BATCH, window, (2, 2, 3), np.uint8)


def write(rows: RowBuffer, first: int, end: int) -> None:
    """Every row holds its own number."""
    row = first
    for part in rows.parts(first, end):
        for out in part:
            out[:] = row
            row += 1


@pytest.mark.parametrize("window", [BATCH, 2 * BATCH, 100])
@pytest.mark.parametrize("cuts", [(0, 23), (0, 11, 23), (0, 3, 4, 17, 23)])
def test_batches_leave_in_row_order_whoever_wrote_them(cuts: tuple[int, ...], window: int) -> None:
    rows = buffer(window)
    with ThreadPoolExecutor(len(cuts) - 1) as pool:
        for first, end in pairwise(cuts):
            pool.submit(write, rows, first, end)
        batches = [rows.take(first) for first in range(0, ROWS, BATCH)]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(batches)[:, 0, 0, 0], np.arange(ROWS))


def test_a_writer_waits_at_the_window_and_ends_when_the_reader_leaves() -> None:
    rows = buffer(window=BATCH)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(write, rows, 0, ROWS)
        rows.take(0)
        rows.take(4)
        assert not written.done(), "row 12 must wait until the third batch is taken"
        rows.close()
        with pytest.raises(ReaderLeft):
            written.result()


def test_an_error_stops_its_own_batch_and_not_those_before() -> None:
    rows = buffer(window=100)
    rows.fail(9, EpisodeRejected(RejectReason.VIDEO_UNDECODABLE, "frame 9 is damaged"))
    write(rows, 0, 9)
    assert rows.take(0)[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert rows.take(4)[:, 0, 0, 0].tolist() == [4, 5, 6, 7]
    with pytest.raises(EpisodeRejected, match="frame 9 is damaged"):
        rows.take(8)
