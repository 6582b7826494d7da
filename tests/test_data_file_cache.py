"""The cache of fetched files: shared by processes, bounded, and never pulled from under a reader."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from molmoact_data.errors import UserError
from molmoact_data.files.cache import FileCache, machine_cache

ROOT = Path(__file__).resolve().parent.parent


def content(text: str) -> Callable[[Path], None]:
    return lambda part: part.write_text(text)  # type: ignore[return-value]


def put(cache: FileCache, key: str, size: int = 100) -> Path:
    with cache.get(key, "file.bin", size, content("x" * size)) as path:
        return path


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def names(cache: FileCache) -> set[str]:
    return {path.parent.name for path in (cache.root / "files").glob("*/*")}


def test_a_file_is_downloaded_once_and_keeps_its_name(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    asked = []

    def download(part: Path) -> None:
        asked.append(part)
        part.write_text("hello")

    first = cache.get("k", "episode_000001.mp4", 5, download).path
    again = cache.get("k", "episode_000001.mp4", 5, download).path

    assert (first, first.name, first.read_text()) == (again, "episode_000001.mp4", "hello")
    assert len(asked) == 1
    assert cache.used_bytes() == 5


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 400)
    for number, key in enumerate("abcd"):
        age(put(cache, key), 100 - number)
    put(cache, "a")  # used again, so `b` is the oldest now

    put(cache, "e")

    assert names(cache) == {"a", "d", "e"}  # down to 90 % of the limit, the newcomer included
    assert cache.used_bytes() == 300


def test_a_pinned_file_stays_whatever_comes(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 250)
    pin = cache.get("old", "file.bin", 100, content("x" * 100))
    age(pin.path, 1000)
    for key in "abcd":
        age(put(cache, key), 500)
        assert pin.path.read_text() == "x" * 100

    pin.close()
    put(cache, "e")
    assert "old" not in names(cache)


def test_another_process_respects_a_pin(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 250)
    pin = cache.get("mine", "file.bin", 100, content("x" * 100))
    age(pin.path, 1000)
    code = (
        "import sys; from pathlib import Path\n"
        "from molmoact_data.files.cache import FileCache\n"
        "cache = FileCache(Path(sys.argv[1]), 250)\n"
        "for key in 'abcd': cache.get(key, 'f', 100, lambda p: p.write_text('y' * 100)).close()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert "mine" in names(cache)
    assert len(names(cache)) == 2
    assert cache.used_bytes() == 200


def test_a_file_larger_than_the_limit_is_served_alone(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 250)
    put(cache, "small")
    assert put(cache, "large", 1000).stat().st_size == 1000
    assert names(cache) == {"large"}


def test_a_failed_download_leaves_nothing_and_costs_nothing(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)

    def fail(part: Path) -> None:
        part.write_text("half")
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        cache.get("k", "file.bin", 100, fail)

    assert not list(tmp_path.rglob("*.part"))
    assert cache.used_bytes() == 0
    assert put(cache, "k").read_text() == "x" * 100


def test_threads_that_want_the_same_file_wait_for_one_download(tmp_path: Path) -> None:
    cache = FileCache(tmp_path, 1000)
    downloads: list[int] = []
    read: list[str] = []

    def slow(part: Path) -> None:
        downloads.append(1)
        part.write_text("ha")
        time.sleep(0.2)
        part.write_text("hard work")

    def work() -> None:
        with cache.get("k", "file.bin", 9, slow) as path:
            read.append(path.read_text())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == ["hard work"] * 6
    assert len(downloads) == 1


HAMMER = """
import random, sys
from pathlib import Path
from molmoact_data.files.cache import FileCache
cache, rng = FileCache(Path(sys.argv[1]), 1000), random.Random(sys.argv[2])
for _ in range(150):
    key = f"{rng.randrange(30):02}"
    def download(part):
        with part.open("w") as file:
            for _ in range(100):
                file.write(key)
    with cache.get(key, "file.bin", 200, download) as path:
        assert path.read_text() == key * 100, (key, path)
        assert path.read_text() == key * 100, "gone while it was held"
"""


def test_many_processes_share_a_small_cache_and_read_whole_files(tmp_path: Path) -> None:
    """Thirty files of 200 bytes, five fit: nearly every step evicts."""
    command = [sys.executable, "-c", HAMMER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(seed)], cwd=ROOT) for seed in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    cache = FileCache(tmp_path, 1000)
    put(cache, "last")
    kept = [path.stat().st_size for path in (tmp_path / "files").glob("*/*")]
    assert sum(kept) == cache.used_bytes() <= 1000


def test_a_worker_killed_in_its_download_is_followed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from molmoact_data.files.cache import FileCache\n"
        "def download(part):\n"
        "    part.write_text('half'); print('half', flush=True); time.sleep(60)\n"
        "FileCache(Path(sys.argv[1]), 150).get('k', 'file.bin', 100, download)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "half\n"
        worker.send_signal(signal.SIGKILL)
    cache = FileCache(tmp_path, 150)

    put(cache, "other")  # needs the room that the dead one was promised

    assert not list(tmp_path.rglob("*.part"))
    assert put(cache, "k").read_text() == "x" * 100
    assert cache.used_bytes() == 100


def test_the_limit_comes_from_the_environment_or_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOLMOACT_CACHE", str(tmp_path))
    monkeypatch.setenv("MOLMOACT_CACHE_GIB", "2.5")
    assert machine_cache() == FileCache(tmp_path / "sources", int(2.5 * 2**30))
    monkeypatch.delenv("MOLMOACT_CACHE_GIB")

    class Disk:
        free = 10 * 2**30

    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk)
    assert machine_cache().limit_bytes == 5 * 2**30
    for wrong in ("plenty", "0", "-3"):
        monkeypatch.setenv("MOLMOACT_CACHE_GIB", wrong)
        with pytest.raises(UserError, match="number of GiB above 0"):
            machine_cache()
