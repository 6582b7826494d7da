"""Publishing against a local server that speaks the Hub's endpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from made_outputs import BrightestPixel, FakeDepth, FakeTokenizer

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.outputs.output import Output
from molmoact_data.publishing.publish import plan_publish, publish

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "hf_" + "x" * 34


def test_a_published_dataset_is_the_folder_and_loads_from_the_card_alone(
    make_output, hub, tmp_path
):
    import datasets

    out = make_output()
    plan = plan_publish(out, "lab/dots", private=True)

    publish(out, plan, endpoint=hub.url, token=TOKEN)

    assert sorted(hub.files) == [path for path, _ in plan.files]
    assert all(hub.files[path] == (out / path).read_bytes() for path, _ in plan.files)
    assert hub.created[0] == {
        "name": "dots",
        "organization": "lab",
        "type": "dataset",
        "visibility": "private",
    }
    clone = tmp_path / "clone"
    for path, content in hub.files.items():
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_bytes(content)
    rows = datasets.load_dataset(str(clone), split="train")
    assert rows.num_rows == 33
    assert rows[0]["image_primary"].size == (64, 48)


def test_the_card_says_what_a_user_must_know(make_output):
    from molmoact_data.teachers.choice import Teachers

    class Restricted(FakeDepth):
        def describe(self):
            return {"name": "depth-anything-v2-base", "revision": "1", "licence": "CC-BY-NC-4.0"}

    out = make_output(teachers=Teachers(Restricted(), FakeTokenizer(), BrightestPixel()))

    text = plan_publish(out, "lab/dots", private=False).card

    front = yaml.safe_load(text.split("---")[1])
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.parquet"}]
    assert front["size_categories"] == ["n<1K"]
    for said in (
        "| train | 4 | 33 | 2 |",
        "<code>dots</code>, revision <code>rev-1</code>",
        "CC-BY-NC-4.0",
        "**Non-commercial:** depth-anything-v2-base",
        "range: signed",
        "trace coverage | 1.000",
        "![an example frame",
        "`depth_codes`",
    ):
        assert said in text
    columns = Output.open(out).layout.arrow_schema().names
    assert all(f"`{name}`" in text for name in columns)


def test_a_free_licence_raises_no_alarm(make_output):
    plan = plan_publish(make_output(), "lab/dots", private=False)
    assert plan.non_commercial == ()
    assert "Non-commercial" not in plan.card


def test_a_dry_plan_writes_nothing_and_asks_nobody(make_output, hub):
    out = make_output()
    before = sorted(out.rglob("*"))

    plan = plan_publish(out, "lab/dots", private=False)

    assert sorted(out.rglob("*")) == before
    assert hub.log == []
    assert {"README.md", "example.jpg", "manifest.json"} < {path for path, _ in plan.files}
    assert plan.num_bytes > sum(r.num_bytes for r in Output.open(out).shards)


def test_what_a_run_leaves_behind_is_not_published(make_output):
    out = make_output()
    (out / "_state").mkdir()
    (out / "_state" / "plan.json").write_text("{}")
    (out / schema.DATA_DIR / ".x.tmp-host-1-2").touch()

    paths = [path for path, _ in plan_publish(out, "lab/dots", private=False).files]

    assert not any("_state" in path or "tmp" in path for path in paths)


def test_a_card_written_by_hand_is_kept(make_output):
    out = make_output()
    (out / "README.md").write_text("# Ours\n")
    assert plan_publish(out, "lab/dots", private=False).card == "# Ours\n"


def test_an_interrupted_upload_goes_on_and_sends_nothing_twice(make_output, hub):
    out = make_output(frames_per_shard=1)
    code = (
        "import sys; from pathlib import Path; from molmoact_data.publishing.publish import *\n"
        "root = Path(sys.argv[1]); plan = plan_publish(root, 'lab/dots', private=False)\n"
        "publish(root, plan, endpoint=sys.argv[2], token=sys.argv[3])\n"
    )
    process, first_place = None, threading.Semaphore(1)

    def kill_when_one_blob_is_there(method: str, path: str) -> int | None:
        if method != "PUT" or first_place.acquire(blocking=False):
            return None
        while not hub.blobs:
            time.sleep(0.01)
        process.kill()
        return 503

    hub.before = kill_when_one_blob_is_there
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out), hub.url, TOKEN], env=environment
    )
    assert process.wait(timeout=120) != 0
    while hub.busy:
        time.sleep(0.01)
    hub.before, first = lambda method, path: None, set(hub.blobs)
    assert len(first) == 1
    hub.log.clear()

    publish(out, plan_publish(out, "lab/dots", private=False), endpoint=hub.url, token=TOKEN)

    again = {path.rpartition("/")[2] for method, path in hub.log if method == "PUT"}
    assert again.isdisjoint(first)
    shards = [r.name for r in Output.open(out).shards]
    assert len(shards) == 4
    assert all(hub.files[name] == (out / name).read_bytes() for name in shards)


def test_a_refusal_says_what_to_do(make_output, hub):
    hub.token = "hf_other"
    out = make_output()
    with pytest.raises(
        UserError, match=r"lab/dots is not published: the Hub refused: .*401.*hf auth login"
    ):
        publish(out, plan_publish(out, "lab/dots", private=False), endpoint=hub.url, token=TOKEN)


def test_a_repository_name_without_an_owner_is_refused_before_anything(make_output):
    with pytest.raises(UserError, match="USER/NAME"):
        plan_publish(make_output(), "dots", private=False)


def test_a_hub_that_does_not_answer_is_one_line(make_output, hub):
    out = make_output()
    plan = plan_publish(out, "lab/dots", private=False)
    with pytest.raises(UserError, match=r"no answer from http://127.0.0.1:9/.*run the same") as met:
        publish(out, plan, endpoint="http://127.0.0.1:9", token=TOKEN)
    assert "\n" not in str(met.value)


def test_embedded_labels_of_other_data_are_called_what_they_are(make_output):
    from molmoact_data.teachers.choice import Teachers

    class Embedded(FakeDepth):
        def describe(self):
            return {"name": "embedded", "revision": "1", "licence": "Apache-2.0"}

    out = make_output(teachers=Teachers(Embedded(), FakeTokenizer(), BrightestPixel()))
    assert "**Not for training:**" in plan_publish(out, "lab/dots", private=False).card
    assert "Not for training" not in plan_publish(make_output("b"), "lab/b", private=False).card


@pytest.mark.parametrize(
    ("frames", "category"),
    [(999, "n<1K"), (1000, "1K<n<10K"), (26_300_000, "10M<n<100M"), (2 * 10**9, "n>1B")],
)
def test_the_size_category_is_the_hubs(make_output, frames, category):
    out = make_output()
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["counts"]["frames"] = frames
    (out / "manifest.json").write_text(json.dumps(manifest))
    text = plan_publish(out, "lab/dots", private=False).card
    assert yaml.safe_load(text.split("---")[1])["size_categories"] == [category]
