"""Two runs on one output, and what killed ones leave: with real processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from molmoact_data.errors import UserError
from molmoact_data.files.folders import (
    LOCK_FILE,
    MARK,
    TEMPORARY_MARK,
    is_taken,
    new_folder,
    remove_left_overs,
    temporary_name,
)
from molmoact_data.files.lock import locked
from molmoact_data.files.storage import Storage

ROOT = Path(__file__).parent.parent


def holding(code: str, folder: Path) -> subprocess.Popen[str]:
    """A process that has come to the point where it says so, and waits there."""
    script = textwrap.dedent(code) + "\nprint('here', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


HOLD = """
    import sys
    from pathlib import Path
    from molmoact_data.files.lock import locked
    held = locked(Path(sys.argv[1])); held.__enter__()
"""


def test_the_second_is_told_who_is_at_work_and_touches_nothing(tmp_path: Path) -> None:
    first = holding(HOLD, tmp_path / "out")
    (tmp_path / "out" / ".a.tmp-live").write_text("of the first")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with (
        pytest.raises(
            UserError, match=rf"process {first.pid} on {socket.gethostname()} since 20\d\d-"
        ),
        locked(tmp_path / "out"),
    ):
        pytest.fail("two hold one folder")
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    first.communicate("\n")


def test_the_lock_of_a_killed_run_blocks_nobody(tmp_path: Path) -> None:
    first = holding(HOLD, tmp_path / "out")
    first.kill()
    first.wait()
    assert (tmp_path / "out" / LOCK_FILE).exists()
    assert not is_taken(tmp_path / "out")
    assert Storage(str(tmp_path / "out")).list() == []
    with locked(tmp_path / "out"):
        (tmp_path / "out" / "result").write_text("x")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["result"]


def test_a_folder_that_was_made_for_the_lock_goes_with_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong input"), locked(tmp_path / "a" / "out"):
        raise UserError("wrong input")
    assert not (tmp_path / "a" / "out").exists()


@pytest.mark.parametrize("content", ["", "{", '{"host": 1}', "\x00" * 10])
def test_a_lock_file_that_says_nothing_blocks_nobody(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


NEW_FOLDER = """
    import sys
    from pathlib import Path
    from molmoact_data.files.folders import new_folder
    made = new_folder(Path(sys.argv[1]), overwrite=False)
    (made.__enter__() / "model").write_text("half")
"""


def test_a_folder_in_the_making_is_not_made_twice(tmp_path: Path) -> None:
    first = holding(NEW_FOLDER, tmp_path / "out")
    unfinished = list(tmp_path.iterdir())
    with (
        pytest.raises(UserError, match=f"being written by process {first.pid} on"),
        new_folder(tmp_path / "out", overwrite=False),
    ):
        pytest.fail("two make one folder")
    assert list(tmp_path.iterdir()) == unfinished
    first.kill()
    first.wait()
    with new_folder(tmp_path / "out", overwrite=False):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*")) == sorted(["out", MARK])


def test_left_overs_are_those_of_processes_that_are_no_more(tmp_path: Path) -> None:
    """Another machine cannot be asked; whoever holds the folder knows that nobody there is at work."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    live = tmp_path / temporary_name("live.parquet")
    elsewhere = tmp_path / f".far.parquet{TEMPORARY_MARK}some-other-host-{dead.pid}-1"
    mine = tmp_path / "notes.tmp-1"
    gone = tmp_path / "data" / f".x{TEMPORARY_MARK}{socket.gethostname()}-{dead.pid}-77"
    gone.parent.mkdir()
    for path in (live, elsewhere, mine, gone):
        path.write_text("x")
    remove_left_overs(tmp_path.rglob("*"))
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted([live, elsewhere, mine])
    Storage(str(tmp_path)).remove_temporary_files()
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted([live, mine])
    assert os.getpid() != dead.pid
