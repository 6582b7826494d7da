"""One chunk of the plan -> one shard and its record; knows neither the run nor Beam."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import new_file, write_bytes, write_json
from molmoact_data.files.typed import read_typed
from molmoact_data.outputs.shards import file_sha256
from molmoact_data.web.catalogue import web_set
from molmoact_data.web.examples import WebExample
from molmoact_data.web.measures import WebMeasures, measure
from molmoact_data.web.pictures import PictureFetcher, PictureRejected, check_picture
from molmoact_data.web.reading import read_picture
from molmoact_data.web.rows import web_row, web_table
from pipelines.shards.progress import FrameCounter
from pipelines.web.config import WebConfig

STATE = "_web_state"
PICTURES = "pictures"
"""Below the raw folder: fetched pictures and the reasons of dead links, shared by all sets and runs."""


@dataclass(frozen=True)
class WebReject:
    """One example that is not there."""

    key: str
    reason: str
    message: str
    url: str = ""


@dataclass(frozen=True)
class WebShard:
    """What became of one chunk of the plan."""

    name: str
    rows: int
    num_bytes: int
    sha256: str
    measures: WebMeasures
    rejects: tuple[WebReject, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"measures": self.measures.to_json()}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> WebShard:
        """The inverse of `to_json`."""
        rejects = tuple(WebReject(**reject) for reject in plain["rejects"])
        measures = WebMeasures.from_json(plain["measures"])
        return cls(**{**plain, "rejects": rejects, "measures": measures})


@dataclass(frozen=True)
class _Plan:
    """How many chunks there are; written last, so that a plan that is there is whole."""

    chunks: int


def write_plan(output: Path, config: WebConfig) -> int:
    """Write the chunks that are not there, the count last; returns how many."""
    count = output / STATE / "plan.json"
    if count.is_file():
        return read_typed(_Plan, count).chunks
    examples = islice(
        web_set(config.name).examples(Path(config.input_path), config.split), config.limit
    )
    chunks = total = 0
    for chunk in _chunked(examples, config.shard_rows):
        lines = "".join(
            json.dumps(example.to_json(), ensure_ascii=False) + "\n" for example in chunk
        )
        write_bytes(_chunk_file(output, chunks), lines.encode())
        chunks, total = chunks + 1, total + len(chunk)
    if not chunks:
        raise UserError(f"{config.name} has no example in the split {config.split!r}.")
    write_json(count, {"chunks": chunks, "examples": total})
    return chunks


def _chunked(examples: Iterable[WebExample], size: int) -> Iterator[list[WebExample]]:
    iterator = iter(examples)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _chunk_file(output: Path, number: int) -> Path:
    return output / STATE / "plan" / f"{number:05d}.jsonl"


def _shard_name(number: int, chunks: int) -> str:
    return f"{schema.DATA_DIR}/train-{number:05d}-of-{chunks:05d}.parquet"


def finished(output: Path, number: int, chunks: int) -> WebShard | None:
    """The record of a shard that is there as it was written; anything else is built again."""
    record = output / STATE / "records" / f"{number:05d}.json"
    if not record.is_file():
        return None
    try:
        shard = WebShard.from_json(read_typed(dict[str, Any], record))
    except (UserError, ValueError, KeyError, TypeError):
        return None
    path = output / _shard_name(number, chunks)
    whole = (
        path.is_file()
        and path.stat().st_size == shard.num_bytes
        and file_sha256(path) == shard.sha256
    )
    return shard if whole else None


def build_shard(config: WebConfig, number: int, chunks: int) -> WebShard:
    """One chunk of the plan -> one shard and its record, each whole or absent."""
    output = Path(config.output_path)
    lines = _chunk_file(output, number).read_text(encoding="utf-8").splitlines()
    examples = [WebExample.from_json(json.loads(line)) for line in lines]
    counter = FrameCounter(output / STATE / "progress")
    fetcher = PictureFetcher(Path(config.input_path) / PICTURES, config.fetch)
    rows: list[dict[str, Any]] = []
    rejects: list[WebReject] = []
    with ThreadPoolExecutor(config.threads) as pool:
        for made in pool.map(lambda example: _row_or_reject(config, example, fetcher), examples):
            counter.add(1)
            if isinstance(made, WebReject):
                rejects.append(made)
            else:
                rows.append(made)
    path = output / _shard_name(number, chunks)
    with new_file(path) as temporary:
        _write_table(rows, temporary)
    shard = WebShard(
        path.relative_to(output).as_posix(),
        len(rows),
        path.stat().st_size,
        file_sha256(path),
        measure(rows),
        tuple(rejects),
    )
    write_json(output / STATE / "records" / f"{number:05d}.json", shard.to_json())
    return shard


def _row_or_reject(
    config: WebConfig, example: WebExample, fetcher: PictureFetcher
) -> dict[str, Any] | WebReject:
    entry = web_set(config.name)
    try:
        picture = read_picture(Path(config.input_path) / entry.folder, example.picture, fetcher)
        size = check_picture(picture, config.fetch.max_pixels)
    except PictureRejected as rejected:
        return WebReject(example.key, rejected.reason, rejected.message, example.picture.url)
    return web_row(entry.name, example, picture, size)


def _write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(web_table(rows), path, compression="zstd", row_group_size=64)
