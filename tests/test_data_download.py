"""Downloading published data against a local server that speaks the Hub's endpoints."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session
from made_hub import RunningHub

from molmoact_data.errors import UserError
from molmoact_data.publishing.download import (
    LIBERO,
    MIDTRAIN,
    PRETRAIN,
    PUBLISHED,
    Download,
    belongs,
    choose,
    drop_leftovers,
    fetch,
    plan_download,
    transfer_hours,
)
from molmoact_data.web.catalogue import WEB_SETS

ROOT = Path(__file__).resolve().parents[1]
FILES = {
    "README.md": b"# card",
    "libero_goal/train-00000-of-00002.parquet": b"g0" * 1000,
    "libero_goal/train-00001-of-00002.parquet": b"g1" * 1000,
    "libero_10/train-00000-of-00001.parquet": b"t" * 500,
}
GOAL = Download(LIBERO, ("libero_goal",))


@pytest.fixture
def hub():
    with RunningHub() as running:
        running.files.update(FILES)
        yield running


def tree(folder):
    paths = [p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}


def test_a_stage_is_all_its_sets_and_names_add_up_by_repository():
    (libero,) = choose(["libero"]).repositories
    assert libero.configs == ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    chosen = choose(["bc_z", "libero_10", "lvis", "bc_z"]).repositories
    assert chosen == (Download(PRETRAIN, ("bc_z", "lvis")), Download(LIBERO, ("libero_10",)))


def test_everything_that_the_reference_takes_has_a_name():
    everything = choose(["all"])
    assert sum(len(d.configs) for d in everything.repositories) == len(PUBLISHED)
    assert [entry.name for entry in everything.web] == list(WEB_SETS)
    for name, repo, config in [
        ("MolmoActDatasetHomePrimary", MIDTRAIN, "molmoact_home_primary"),
        ("LIBEROLong", LIBERO, "libero_10"),
        ("RT_1", PRETRAIN, "fractal20220817_data"),
        ("molmoact_dataset", "allenai/MolmoAct-Dataset", ""),
        ("someone/their-lerobot-set", "someone/their-lerobot-set", ""),
    ]:
        assert choose([name]).repositories == (Download(repo, (config,)),)
    assert [entry.name for entry in choose(["ChartQa", "AOkVqa"]).web] == [
        "chart_qa_weighted",
        "a_okvqa_mc",
        "a_okvqa_da",
    ]
    with pytest.raises(UserError, match="Did you mean 'ChartQa'"):
        choose(["ChartQA"])


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'bridge_dataset'"):
        choose(["bridge_datset"])


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("libero_goal/train-00000.parquet", True),
        ("data/libero_goal-00000-of-00004.parquet", True),
        ("data/libero_goal/0.parquet", True),
        ("README.md", True),
        ("libero_goal_extra/0.parquet", False),
        ("libero_10/train-00000.parquet", False),
        ("images/README.md", False),
    ],
)
def test_files_belong_to_a_configuration_by_folder_or_name(path, wanted):
    assert belongs(path, ["libero_goal"]) is wanted


def test_only_the_chosen_configuration_arrives_byte_for_byte(hub, tmp_path):
    folder = fetch(GOAL, tmp_path, endpoint=hub.url)

    assert folder == tmp_path / "libero"
    assert tree(folder) == {k: v for k, v in FILES.items() if "libero_10" not in k}


def test_a_second_run_fetches_only_what_is_missing(hub, tmp_path):
    folder = fetch(GOAL, tmp_path, endpoint=hub.url)
    (folder / "libero_goal/train-00001-of-00002.parquet").unlink()
    hub.log.clear()

    fetch(GOAL, tmp_path, endpoint=hub.url)

    bodies = [path for method, path in hub.log if method == "GET" and "/resolve/" in path]
    assert [path.rpartition("/")[2] for path in bodies] == ["train-00001-of-00002.parquet"]
    assert len(tree(folder)) == 3


def test_after_a_failure_the_rest_follows_and_what_arrived_stays(hub, tmp_path):
    def refuse_second_file(method: str, path: str) -> int | None:
        return 403 if method == "GET" and path.endswith("00001-of-00002.parquet") else None

    hub.before = refuse_second_file
    with pytest.raises(UserError, match="run the same command again"):
        fetch(GOAL, tmp_path, endpoint=hub.url)
    hub.before = lambda method, path: None

    assert len(tree(fetch(GOAL, tmp_path, endpoint=hub.url))) == 3


def test_after_a_kill_the_half_file_is_fetched_anew_and_nothing_is_left_of_it(hub, tmp_path):
    """huggingface_hub writes 10 MiB at a time, so the file is larger than that."""
    name = "libero_goal/train-00000-of-00002.parquet"
    hub.files[name] = bytes(range(256)) * (3 * 2**20 // 64)  # 12 MiB
    hub.stall_after = 11 * 2**20
    code = (
        "import sys; from pathlib import Path; from molmoact_data.publishing.download import *\n"
        "fetch(Download(LIBERO, ('libero_goal',)), Path(sys.argv[1]), endpoint=sys.argv[2])\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), hub.url]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not any(p.stat().st_size for p in tmp_path.rglob("*.incomplete")):
            assert process.poll() is None, "the download ended before it was killed"
            time.sleep(0.05)
        process.kill()
        process.wait()
    halves = list(tmp_path.rglob("*.incomplete"))
    for path in halves:
        os.utime(path, (0, 0))
    hub.stall_after = None
    hub.go_on.set()

    folder = fetch(GOAL, tmp_path, endpoint=hub.url)

    assert (folder / name).read_bytes() == hub.files[name]
    assert len(tree(folder)) == 3
    assert halves
    assert not list(tmp_path.rglob("*.incomplete"))


def test_half_a_file_that_is_being_written_is_left_alone(tmp_path):
    live = tmp_path / ".cache" / "huggingface" / "download" / "a.incomplete"
    live.parent.mkdir(parents=True)
    live.touch()

    drop_leftovers(tmp_path)

    assert live.exists()


def test_half_a_download_is_not_enough_offline(hub, tmp_path, monkeypatch):
    folder = fetch(GOAL, tmp_path, endpoint=hub.url)
    (folder / "libero_goal/train-00001-of-00002.parquet").unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"libero_goal \(1 of 2 files, libero_goal/train-00001"):
        fetch(GOAL, tmp_path, endpoint=hub.url)


def test_a_folder_copied_from_elsewhere_will_do_offline(tmp_path, monkeypatch):
    (tmp_path / "libero/libero_goal").mkdir(parents=True)
    (tmp_path / "libero/libero_goal/0.parquet").write_bytes(b"x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(GOAL, tmp_path) == tmp_path / "libero"


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(hub, tmp_path, monkeypatch):
    class Disk:
        free = 3000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Disk)
    with pytest.raises(UserError, match=r"needs 0.0 GB more, .* free"):
        fetch(GOAL, tmp_path, endpoint=hub.url)
    assert not any("/resolve/" in path for _, path in hub.log)


def test_a_hub_that_does_not_answer_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"no answer from http://127.0.0.1:9/.*run the same") as met:
        fetch(GOAL, tmp_path, endpoint="http://127.0.0.1:9")
    assert "\n" not in str(met.value)


def test_a_plan_made_offline_says_why_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, so the Hub is not asked"):
        plan_download(GOAL)


def test_the_plan_counts_bytes_before_anything_is_fetched(hub):
    plan = plan_download(GOAL, endpoint=hub.url)

    assert plan.to_json()["bytes"] == 2000 + 2000 + 6
    assert not any("/resolve/" in path for _, path in hub.log)


def test_the_plan_names_the_licence_that_the_card_names(hub):
    assert plan_download(GOAL, endpoint=hub.url).licence == "not named on its card"
    hub.card["license"] = "odc-by"
    assert plan_download(GOAL, endpoint=hub.url).licence == "odc-by"
    hub.card |= {"license": "other", "license_name": "our-lab-terms"}
    assert plan_download(GOAL, endpoint=hub.url).to_json()["licence"] == "our-lab-terms"


def test_hours_on_a_line():
    # A gigabyte is 8,000 megabits: 80 s at 100 Mbit/s.
    assert transfer_hours(10**9, 100) == pytest.approx(80 / 3600)


def test_a_repository_without_the_configuration_says_what_it_has(hub):
    with pytest.raises(UserError, match=r"libero_spatial; it has: README.md, libero_10"):
        plan_download(Download(LIBERO, ("libero_spatial",)), endpoint=hub.url)


def test_offline_uses_what_is_there_and_names_what_is_not(hub, tmp_path, monkeypatch):
    folder = fetch(GOAL, tmp_path, endpoint=hub.url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.log.clear()

    assert fetch(GOAL, tmp_path, endpoint=hub.url) == folder
    with pytest.raises(UserError, match="libero_10"):
        fetch(Download(LIBERO, ("libero_10",)), tmp_path, endpoint=hub.url)
    assert hub.log == []
