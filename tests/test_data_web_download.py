"""Raw files of general sets: fetched, continued, unpacked, verified; against a local server and a fake Hub."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_commands import Molmoact
from made_hub import Hub, RunningHub
from made_web import picture

from molmoact_data.errors import UserError
from molmoact_data.web.catalogue import WEB_SETS
from molmoact_data.web.download import Servers, fetch_set, plan_set


class Mirror:
    """Files by `HOST/PATH`; can break off, and answers ranges."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.break_after: int | None = None
        self.sent: Counter[str] = Counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                outer._answer(self, body=False)

            def do_GET(self) -> None:
                outer._answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        name = request.path.lstrip("/").partition("?")[0]
        content = self.files.get(name)
        if content is None:
            request.send_error(404)
            return
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        start = int(match.group(1)) if match else 0
        rest = content[start:]
        request.send_response(206 if match else 200)
        request.send_header("Content-Length", str(len(rest)))
        request.end_headers()
        if body:
            sent = rest if self.break_after is None else rest[: self.break_after]
            self.sent[name] += len(sent)
            request.wfile.write(sent)
            request.close_connection = True


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    running = Mirror()
    yield running
    running.close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with RunningHub() as running:
        yield running


def zipped(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


DVQA = "drive.usercontent.google.com/download"
FIGURE = "download.microsoft.com/download/c/3/1/c315c9d8-8239-487e-a895-2d3ff805b508/figureqa-{}-v1.tar.gz"


def serve_figure_qa(mirror: Mirror) -> None:
    for part in ("train1", "validation1"):
        content = tarred(
            {f"{part}/qa_pairs.json": b'{"qa_pairs": []}', f"{part}/png/0.png": picture()}
        )
        mirror.files[FIGURE.format(part)] = content


def test_archives_are_fetched_once_and_unpacked(mirror: Mirror, tmp_path: Path) -> None:
    serve_figure_qa(mirror)
    servers = Servers(mirror=mirror.url)
    entry = WEB_SETS["figure_qa"]
    plan = plan_set(entry, servers)
    assert (plan.files, plan.num_bytes) == (2, sum(map(len, mirror.files.values())))
    fetch_set(entry, tmp_path, servers)
    assert (tmp_path / "figure_qa/train1/png/0.png").read_bytes() == picture()
    assert not list((tmp_path / "figure_qa/archives").iterdir())
    sent = dict(mirror.sent)
    fetch_set(entry, tmp_path, servers)
    fetch_set(entry, tmp_path, replace(servers, offline=True))
    assert dict(mirror.sent) == sent


def test_half_a_file_goes_on_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    serve_figure_qa(mirror)
    total = sum(map(len, mirror.files.values()))
    mirror.break_after = 100
    fetch_set(WEB_SETS["figure_qa"], tmp_path, Servers(mirror=mirror.url), workers=1)
    assert sum(mirror.sent.values()) == total
    mirror.break_after = 0
    with pytest.raises(UserError, match="broke off at 0 bytes"):
        fetch_set(WEB_SETS["figure_qa"], tmp_path / "again", Servers(mirror=mirror.url))


def test_a_truncated_archive_is_named_and_fetched_again(mirror: Mirror, tmp_path: Path) -> None:
    serve_figure_qa(mirror)
    whole = dict(mirror.files)
    mirror.files = {name: content[:-30] for name, content in whole.items()}
    with pytest.raises(UserError, match=r"figureqa-.*\.tar\.gz is damaged"):
        fetch_set(WEB_SETS["figure_qa"], tmp_path, Servers(mirror=mirror.url), workers=1)
    mirror.files = whole
    fetch_set(WEB_SETS["figure_qa"], tmp_path, Servers(mirror=mirror.url))
    assert (tmp_path / "figure_qa/validation1/qa_pairs.json").is_file()


@pytest.mark.parametrize(
    "name", ["../../outside.json", "/tmp/outside.json", "a/../../outside.json"]
)
def test_an_archive_writes_nowhere_else(name: str, mirror: Mirror, tmp_path: Path) -> None:
    entry = WEB_SETS["tabwmp_da"]
    mirror.files["codeload.github.com/lupantech/PromptPG/legacy.zip/main"] = zipped(**{name: b"{}"})
    with pytest.raises(UserError, match="outside its folder"):
        fetch_set(entry, tmp_path, Servers(mirror=mirror.url))
    assert not list(tmp_path.rglob("outside.json"))


def test_a_file_that_is_gone_says_so(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answers 404: the file is not there any more"):
        fetch_set(WEB_SETS["figure_qa"], tmp_path, Servers(mirror=mirror.url))
    with pytest.raises(UserError, match="answers 404"):
        plan_set(WEB_SETS["figure_qa"], Servers(mirror=mirror.url))


def test_what_a_person_must_fetch_is_told_until_it_is_there(tmp_path: Path) -> None:
    entry = WEB_SETS["info_qa"]
    (line,) = fetch_set(entry, tmp_path, Servers())
    assert "register at https://rrc.cvc.uab.es/?ch=17" in line
    assert "infographicsVQA_train_v1.0.json" in line
    assert "into info_qa/" in line
    for name in (
        "infographicsVQA_train_v1.0.json",
        "infographicsVQA_val_v1.0_withQT.json",
        "images/1.jpeg",
    ):
        (tmp_path / "info_qa" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "info_qa" / name).touch()
    assert fetch_set(entry, tmp_path, Servers()) == ()


def test_the_command_plans_fetches_and_goes_on_past_what_needs_hands(
    molmoact: Molmoact, mirror: Mirror, hub: Hub, tmp_path: Path
) -> None:
    serve_figure_qa(mirror)
    hub.files["data/train-00000-of-00001.parquet"] = b"rows"
    where = ["--output-path", tmp_path, "--endpoint", hub.url, "--mirror", mirror.url]
    dry = ["--dry-run", "--mbit-per-s", "0.001", "--json"]
    code, out, err = molmoact("download", "InfoQa", "FigureQa", "ChartQa", *where, *dry)
    assert code == 0, err
    planned = {entry["name"]: entry for entry in json.loads(out)}
    figures = planned["figure_qa"]
    assert figures["hours"] == pytest.approx(figures["num_bytes"] * 8 / 1000 / 3600)
    assert figures["files"] == 2
    assert "Microsoft Research Data Licence" in figures["licence"]
    assert "by hand: info_qa: register at" in err
    assert not list(tmp_path.iterdir())
    code, _, err = molmoact("download", "InfoQa", "FigureQa", "ChartQa", *where)
    assert code == 0, err
    assert (tmp_path / "figure_qa/train1/qa_pairs.json").is_file()
    assert (tmp_path / "chart_qa/data/train-00000-of-00001.parquet").read_bytes() == b"rows"
    assert "by hand: info_qa" in err
