"""A local HTTP server that speaks the Hub endpoints used for publishing and downloading data sets."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c" * 40


@dataclass
class Hub:
    """What the server holds and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    """Committed files by path."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """LFS objects by sha256."""
    created: list[dict] = field(default_factory=list)
    log: list[tuple[str, str]] = field(default_factory=list)
    """(method, path) of every request."""
    ranges: list[str] = field(default_factory=list)
    """Range headers of downloads."""
    before: Callable[[str, str], int | None] = lambda method, path: None
    """May answer with an error status instead."""
    stall_after: int | None = None
    """Bytes of a download after which nothing more is sent; None = all of it is."""
    token: str | None = None
    """The only token that may write; None = any."""
    card: dict[str, str] = field(default_factory=dict)
    """What the head of the README says."""
    url: str = ""
    busy: set[int] = field(default_factory=set)
    """Threads that are answering a request now."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """Ends a stall, and the connection with it."""


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_HEAD(self) -> None:
        self.answer("HEAD")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def answer(self, method: str) -> None:
        self.hub.busy.add(threading.get_ident())
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer_with(method, body)
        except ConnectionError:  # the client was killed
            self.close_connection = True
        finally:
            self.hub.busy.discard(threading.get_ident())

    def answer_with(self, method: str, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.hub.log.append((method, path))
        status = self.hub.before(method, path)
        authorised = self.hub.token is None or self.headers.get("Authorization", "").endswith(
            self.hub.token
        )
        if status is None and method != "GET" and "/api/" in path and not authorised:
            status = 401
        if status is not None:
            self.reply(status, {"error": "refused by the test"})
        elif path == "/api/repos/create":
            request = json.loads(body)
            self.hub.created.append(request)
            repo_id = f"{request['organization']}/{request['name']}"
            self.reply(200, {"url": f"{self.hub.url}/datasets/{repo_id}"})
        elif path == "/api/validate-yaml":
            self.reply(200, {"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self.preupload(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self.lfs_batch(json.loads(body))
        elif method == "PUT":
            self.store(path.rpartition("/")[2], body)
        elif "/commit/" in path:
            self.commit(body)
        elif "/resolve/" in path:
            self.resolve(method, path)
        elif "/tree/" in path:
            self.tree()
        elif path.startswith("/api/datasets/"):
            self.info()
        else:
            self.reply(404, {"error": path})

    def preupload(self, request: dict) -> None:
        answers = [
            {
                "path": f["path"],
                "uploadMode": "lfs" if f["path"].endswith(".parquet") else "regular",
                "shouldIgnore": False,
            }
            for f in request["files"]
        ]
        self.reply(200, {"files": answers})

    def lfs_batch(self, request: dict) -> None:
        objects = []
        for wanted in request["objects"]:
            known = wanted["oid"] in self.hub.blobs
            upload = {"upload": {"href": f"{self.hub.url}/blob/{wanted['oid']}", "header": {}}}
            objects.append({**wanted, **({} if known else {"actions": upload})})
        self.reply(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str, body: bytes) -> None:
        """Keep a blob that is what its name says, as the Hub does: a killed client sends a part."""
        if hashlib.sha256(body).hexdigest() == oid:
            self.hub.blobs[oid] = body
        self.reply(200 if oid in self.hub.blobs else 400, {})

    def commit(self, body: bytes) -> None:
        import base64

        for line in body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.blobs[value["oid"]]
        answer = {
            "commitUrl": f"https://huggingface.co/datasets/lab/dots/commit/{COMMIT}",
            "commitOid": COMMIT,
        }
        self.reply(200, {**answer, "commitMessage": "x", "commitDescription": ""})

    def info(self) -> None:
        siblings = [{"rfilename": k, "size": len(v)} for k, v in self.hub.files.items()]
        told = {"id": "u/n", "sha": COMMIT, "siblings": siblings, "private": False}
        self.reply(200, told | ({"cardData": self.hub.card} if self.hub.card else {}))

    def tree(self) -> None:
        files = [
            {"type": "file", "path": k, "size": len(v), "oid": hashlib.sha1(v).hexdigest()}
            for k, v in self.hub.files.items()
        ]
        self.reply(200, files)

    def resolve(self, method: str, path: str) -> None:
        name = re.sub(r"^.*/resolve/[^/]+/", "", path)
        if name not in self.hub.files:
            self.reply(404, {"error": name})
            return
        content = self.hub.files[name]
        asked = self.headers.get("Range")
        start = 0
        if asked and method == "GET":
            self.hub.ranges.append(asked)
            start = int(re.match(r"bytes=(\d+)-", asked)[1])
        part = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            size = len(content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if method == "GET" and self.hub.stall_after is not None:
            self.wfile.write(part[: self.hub.stall_after])
            self.wfile.flush()
            self.hub.go_on.wait(timeout=60)
        elif method == "GET":
            self.wfile.write(part)

    def reply(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class RunningHub:
    """`with RunningHub() as hub:` on a free port of loopback."""

    def __enter__(self) -> Hub:
        hub = Hub()
        handler = type("BoundHandler", (Handler,), {"hub": hub})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        hub.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return hub

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
