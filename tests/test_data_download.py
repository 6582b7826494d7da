"""Downloading published data against a local server that speaks the Hub's endpoints."""

from __future__ import annotations

import pytest
from made_hub import RunningHub

from molmoact_data.download import LIBERO, PRETRAIN, Download, belongs, choose, fetch, plan_download
from molmoact_data.errors import UserError

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
    (libero,) = choose(["libero"])
    assert libero.configs == ("libero_spatial", "libero_object", "libero_goal", "libero_10")
    chosen = choose(["bc_z", "libero_10", "lvis", "bc_z"])
    assert chosen == [Download(PRETRAIN, ("bc_z", "lvis")), Download(LIBERO, ("libero_10",))]


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


def test_half_a_file_is_continued_not_begun_again(hub, tmp_path):
    name = "libero_goal/train-00000-of-00002.parquet"
    from huggingface_hub._local_folder import get_local_download_paths

    paths = get_local_download_paths(tmp_path / "libero", name)
    import hashlib

    etag = hashlib.sha256(FILES[name]).hexdigest()
    paths.incomplete_path(etag).write_bytes(FILES[name][:700])

    folder = fetch(GOAL, tmp_path, endpoint=hub.url)

    assert hub.ranges == ["bytes=700-"]
    assert (folder / name).read_bytes() == FILES[name]


def test_the_plan_counts_bytes_before_anything_is_fetched(hub):
    plan = plan_download(GOAL, endpoint=hub.url)

    assert plan.to_json()["bytes"] == 2000 + 2000 + 6
    assert not any("/resolve/" in path for _, path in hub.log)


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
