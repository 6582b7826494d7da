"""Tiny copies of every general set in its authors' layout, and a server for the pictures that have addresses."""

from __future__ import annotations

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from made_tfrecord import encode_example, encode_record
from PIL import Image

from molmoact_data.web.layouts.pixmo import is_held_out


def picture(size: tuple[int, int] = (40, 30), colour: str = "red", kind: str = "PNG") -> bytes:
    """An encoded picture."""
    encoded = io.BytesIO()
    Image.new("RGB", size, colour).save(encoded, kind)
    return encoded.getvalue()


PICTURES = 3


class PictureServer:
    """`/name.png` is a picture; other paths misbehave: see `_answer`. Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.pictures: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._listen(Handler)
        # An address decides its split, and the port is part of it: one with a held-out picture is given back.
        while any(is_held_out(f"{self.url}/p{i}.png") for i in range(PICTURES)):
            self._server.server_close()
            self._listen(Handler)

    def _listen(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.url = f"http://{self.host}"

    def __enter__(self) -> PictureServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path
        self.asked[path] += 1
        headers: dict[str, str] = {}
        status, body = 404, b"gone"
        if path in self.pictures:
            status, body = 200, self.pictures[path]
        elif path == "/busy-once.png":
            status, body = (429, b"") if self.asked[path] == 1 else (200, picture(colour="blue"))
            headers = {"Retry-After": "7"}
        elif path == "/always-busy.png":
            status, body = 503, b""
        elif path == "/text.png":
            status, body = 200, b"<html>not found, but politely</html>"
        elif path == "/huge.png":
            status, body = 200, b"\0" * 200_000
        elif path in self.redirects:
            status, headers = 302, {"Location": self.redirects[path]}
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def table(root: Path, name: str, rows: list[dict[str, Any]], *, row_group: int = 2) -> None:
    """Rows as the Hub has them."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group)


def _json(root: Path, name: str, value: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _images(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        (root / name).write_bytes(picture(kind=kind))


def urls(server: PictureServer, count: int) -> list[str]:
    """Addresses of pictures that are all different."""
    names = [f"/p{i}.png" for i in range(count)]
    server.pictures |= {
        name: picture(colour=f"#{i * 7 % 256:02x}8040") for i, name in enumerate(names)
    }
    return [server.url + name for name in names]


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def pixmo(root: Path, server: PictureServer) -> None:
    """The five PixMo repositories, three pictures each."""
    addresses = urls(server, PICTURES)
    hashes = [sha(server.pictures[url.removeprefix(server.url)]) for url in addresses]
    both = list(zip(addresses, hashes, strict=True))
    table(
        root,
        "pixmo-cap/data/train-00000-of-00001.parquet",
        [
            {"image_url": url, "caption": "A red square.", "transcripts": ["so there is a square"]}
            for url in addresses
        ],
    )
    table(
        root,
        "pixmo-cap-qa/data/train-00000-of-00001.parquet",
        [
            {
                "image_url": url,
                "question": "How many?",
                "answer": "One.",
                "messages": ["How many squares?", "One."],
            }
            for url in addresses
        ],
    )
    table(
        root,
        "pixmo-ask-model-anything/data/train-00000-of-00001.parquet",
        [
            {"image_url": url, "image_sha256": h, "question": "What is it?", "answer": "A square."}
            for url, h in both
        ],
    )
    table(
        root,
        "pixmo-point-explanations/data/train-00000-of-00001.parquet",
        [
            {
                "image_url": url,
                "image_sha256": h,
                "question": "Where?",
                "response": "r",
                "parsed_response": "Look <|POINT|> here.",
                "alt_text": ["the square"],
                "inline_text": ["square"],
                "points": [[[50.0, 25.04]]],
            }
            for url, h in both
        ],
    )
    table(
        root,
        "pixmo-points/data/train-00000-of-00001.parquet",
        [
            {
                "image_url": url,
                "image_sha256": h,
                "label": "Square",
                "count": 2,
                "collection_method": method,
                "points": [{"x": 80.0, "y": 10.0}, {"x": 20.26, "y": 30.0}],
            }
            for url, h in both
            for method in ("pointing", "counting")
        ],
    )
    counted = [
        {
            "image_url": url,
            "image_sha256": h,
            "label": "squares",
            "count": 1,
            "points": {"x": [20.0], "y": [15.0]},
        }
        for url, h in both
    ]
    table(root, "pixmo-count/data/train-00000-of-00001.parquet", counted)
    table(root, "pixmo-count/data/validation-00000-of-00001.parquet", counted[:1])


def tables(root: Path) -> None:
    """Question tables with pictures inside."""
    image = {"bytes": picture(), "path": None}
    table(
        root,
        "text_vqa/default/train/0000.parquet",
        [
            {
                "image": image,
                "question": "what does it say?",
                "question_id": i,
                "answers": ["stop", "stop", "sop"],
            }
            for i in range(3)
        ],
    )
    table(
        root,
        "okvqa/default/train/0000.parquet",
        [
            {
                "image": image,
                "question": "what is it?",
                "question_id": i,
                "answers": [{"answer": "squar", "raw_answer": "square"}],
            }
            for i in range(3)
        ],
    )
    table(
        root,
        "chart_qa/data/train-00000-of-00001.parquet",
        [
            {"image": image, "query": "how high?", "label": ["3"], "human_or_machine": i % 2}
            for i in range(4)
        ],
    )
    table(
        root,
        "doc_qa/data/train-00000-of-00001.parquet",
        [
            {
                "image": image,
                "questionId": str(i),
                "question": "who signed?",
                "answers": ["Ann", "ann"],
            }
            for i in range(3)
        ],
    )
    table(
        root,
        "science_qa/data/train-00000-of-00001.parquet",
        [
            {
                "image": image if i else None,
                "question": "which?",
                "hint": "look" if i == 1 else "",
                "choices": ["a", "b"],
                "answer": 1,
            }
            for i in range(3)
        ],
    )
    _json(
        root,
        "tabwmp/PromptPG-1/data/tabmwp/problems_train.json",
        {"7": {"question": "sum?", "answer": "3", "split": "train"}},
    )
    _images(root, "tabwmp/PromptPG-1/data/tabmwp/tables/7.png")


def coco(root: Path) -> None:
    """VQA v2, A-OKVQA and TallyQA share the folder of pictures."""
    asked = {
        "questions": [{"image_id": 9, "question_id": q, "question": f"is it {q}?"} for q in (1, 2)]
    }
    told = {
        "annotations": [
            {"question_id": q, "answers": [{"answer": "yes"}, {"answer": "yes"}, {"answer": "no"}]}
            for q in (1, 2)
        ]
    }
    _json(root, "coco/v2_OpenEnded_mscoco_train2014_questions.json", asked)
    _json(root, "coco/v2_mscoco_train2014_annotations.json", told)
    _json(root, "coco/aokvqa_v1p0_train.json", [{
        "image_id": 9, "question_id": "q", "question": "which?", "choices": ["cat", "dog", "cow", "hen"],
        "correct_choice_idx": 2, "direct_answers": ["cow", "cow", "bull"], "difficult_direct_answer": False,
    }])  # fmt: skip
    _json(
        root,
        "coco/tallyqa/train.json",
        [
            {"image": "VG_100K/1.jpg", "image_id": 1, "question": "how many?", "answer": 3},
            {"image": "VG_100K/1.jpg", "image_id": 1, "question": "how many cats?", "answer": 0},
        ],
    )
    _images(
        root,
        "coco/train2014/COCO_train2014_000000000009.jpg",
        "coco/train2017/000000000009.jpg",
        "coco/VG_100K/1.jpg",
    )


def charts(root: Path) -> None:
    """DVQA, FigureQA, PlotQA."""
    _json(
        root,
        "dv_qa/train_qa.json",
        [{"image": "b.png", "question": "highest?", "answer": "a", "answer_bbox": []}],
    )
    _json(
        root,
        "figure_qa/train1/qa_pairs.json",
        {
            "qa_pairs": [
                {
                    "image_index": 0,
                    "question_string": "Is red above?",
                    "answer": 1,
                    "question_id": 0,
                }
            ]
        },
    )
    _json(
        root,
        "plot_qa/train/qa_pairs_V2.json",
        {
            "qa_pairs": [
                {"image_index": 0, "question_string": "sum?", "answer": 4.5, "question_id": 0}
            ]
        },
    )
    _images(root, "dv_qa/images/b.png", "figure_qa/train1/png/0.png", "plot_qa/train/png/0.png")


def documents(root: Path) -> None:
    """The two sets that people fetch by hand."""
    _json(
        root,
        "info_qa/infographicsVQA_train_v1.0.json",
        {
            "data": [
                {
                    "questionId": 1,
                    "question": "how much?",
                    "answers": ["3"],
                    "image_local_name": "1.jpeg",
                }
            ]
        },
    )
    _json(
        root,
        "st_qa/train_task_3.json",
        {
            "data": [
                {
                    "question_id": i,
                    "question": "what shop?",
                    "answers": ["bar"],
                    "file_path": "coco-text/1.jpg",
                }
                for i in range(1026)
            ]
        },
    )
    _images(root, "info_qa/images/1.jpeg", "st_qa/coco-text/1.jpg")


def diagrams(root: Path) -> None:
    """AI2D: 386 pictures, of which 384 are held out and one is its authors' test picture; one question has letters."""
    for number in range(386):
        lettered = number % 2 == 0
        _json(
            root,
            f"ai2d/ai2d/questions/{number}.png.json",
            {
                "imageName": f"{number}.png",
                "questions": {
                    "What eats A?": {
                        "abcLabel": lettered,
                        "answerTexts": ["A", "B", "{}", "B"] if lettered else ["fox", "hen"],
                        "correctAnswer": 1,
                        "questionId": f"{number}.png-0",
                    },
                },
            },
        )
        _json(
            root,
            f"ai2d/ai2d/annotations/{number}.png.json",
            {
                "text": {
                    "T0": {"rectangle": [[2, 2], [20, 14]], "replacementText": "A"},
                    "T1": {"rectangle": [[22, 2], [38, 14]], "replacementText": "B"},
                }
            },
        )
    _images(root, *(f"ai2d/ai2d/images/{number}.png" for number in range(386)))
    (root / "ai2d" / "ai2d_test_ids.csv").write_text("0\n")


def android(root: Path) -> None:
    """One episode of three screens, as its authors pack it, but uncompressed."""
    actions = [
        {"action_type": "click", "x": 270, "y": 600},
        {"action_type": "input_text", "text": "hi"},
    ]
    record = encode_example({
        "episode_id": np.array([5]), "goal": [b"say hi"], "screenshots": [picture((27, 60))] * 3,
        "screenshot_widths": np.full(3, 1080), "screenshot_heights": np.full(3, 2400),
        "actions": [json.dumps(a).encode() for a in actions], "step_instructions": [b"tap the field", b"type hi"],
    })  # fmt: skip
    folder = root / "android_control"
    folder.mkdir(parents=True)
    (folder / "android_control-00000-of-00020").write_bytes(encode_record(record))
    _json(root, "android_control/splits.json", {"train": [5], "validation": [], "test": []})


EVERYTHING: Mapping[str, Callable[[Path], None]] = {
    "tables": tables, "coco": coco, "charts": charts, "documents": documents, "diagrams": diagrams, "android": android,
}  # fmt: skip


def write_everything(root: Path, server: PictureServer) -> None:
    """Every set of the catalogue."""
    pixmo(root, server)
    for write in EVERYTHING.values():
        write(root)
