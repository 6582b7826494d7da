"""General vision-language sets -> Parquet shards of conversations with their pictures inside.

The plan (every example, in the order of its files) is written first, a chunk per shard; a worker reads its chunk,
fetches the pictures, writes its shard whole and then a record of it. So a run that is killed goes on where it was, on
one machine or on a cluster that shares the output folder, and ends with the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from molmoact_data import schema
from molmoact_data.config import as_dict, content_hash
from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.files.folders import new_file, write_bytes, write_json
from molmoact_data.outputs.shards import file_sha256
from molmoact_data.web.catalogue import web_set
from molmoact_data.web.examples import WebExample
from molmoact_data.web.pictures import FetchConfig, PictureFetcher, PictureRejected, check_picture
from molmoact_data.web.reading import read_picture
from molmoact_data.web.rows import web_row, web_table
from pipelines.progress import FrameCounter, frames_counted, show_progress
from pipelines.runners import RunnerConfig, run_pipeline

if TYPE_CHECKING:
    import apache_beam as beam

logger = logging.getLogger(__name__)

WEB_MANIFEST = "web_manifest.json"
STATE = "_web_state"
PICTURES = "pictures"
"""Below the raw folder: fetched pictures and the reasons of dead links, shared by all sets and runs."""


@dataclass(frozen=True)
class WebConfig:
    """One set, one split."""

    name: str
    """The set, by its name in the published mixture."""
    input_path: str
    """Where `molmoact download` put the raw files of all sets."""
    output_path: str
    """Folder of this set's shards."""
    split: str = "train"
    """`train`, or `validation` for what is held out."""
    shard_rows: int = 1000
    """Examples per shard, the unit that a resumed run keeps."""
    threads: int = 16
    """Pictures read or fetched at a time in one worker."""
    max_reject_fraction: float = 0.5
    """The run ends with exit code 3 above it; old links die, so a high share is no surprise."""
    limit: int | None = None
    """Only the first examples, to try things out."""
    resume: bool = False
    """Go on with what is there."""
    retry_dead_links: bool = False
    """Ask addresses again that an earlier run found dead."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)

    def __post_init__(self) -> None:
        if self.split not in ("train", "validation"):
            raise ValueError(f"split is train or validation, not {self.split!r}")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(f"max_reject_fraction is 0..1, got {self.max_reject_fraction}")
        for name in ("shard_rows", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def fingerprint(self) -> dict[str, Any]:
        """What decides the content of the shards."""
        kept = ("name", "split", "shard_rows", "limit")
        return {key: value for key, value in as_dict(self).items() if key in kept}


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
    rejects: tuple[WebReject, ...]

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> WebShard:
        """The inverse of `asdict`."""
        rejects = tuple(WebReject(**reject) for reject in plain["rejects"])
        return cls(**{**plain, "rejects": rejects})


@dataclass(frozen=True)
class WebResult:
    """What `--json` prints."""

    output: str
    rows: int
    shards: int
    shards_built: int
    rejects: dict[str, int]


def preprocess_web(config: WebConfig) -> WebResult:
    """Write the shards of one set and split. Raises `LimitExceeded` above the share of rejects."""
    output = Path(config.output_path)
    _claim(output, config)
    chunks = _plan(output, config)
    fetcher = PictureFetcher(Path(config.input_path) / PICTURES, config.fetch)
    if config.retry_dead_links:
        logger.info("%d dead links are asked again", fetcher.forget_verdicts())
    missing = [number for number in range(chunks) if _finished(output, number, chunks) is None]
    _build(config, missing, chunks)
    shards = [_finished(output, number, chunks) for number in range(chunks)]
    done = [shard for shard in shards if shard is not None]
    if len(done) < chunks:
        raise UserError(
            f"{chunks - len(done)} of {chunks} shards are not there; run again with --resume."
        )
    return _finish(output, config, done, len(missing))


def _claim(output: Path, config: WebConfig) -> None:
    known = output / STATE / "config.json"
    if (output / WEB_MANIFEST).is_file() or known.is_file():
        if not config.resume:
            raise UserError(
                f"{output} exists already: --resume goes on with it, or choose another --output-path."
            )
        before = json.loads((known if known.is_file() else output / WEB_MANIFEST).read_text())
        before = before.get("config", before)
        if before != config.fingerprint():
            raise UserError(
                f"{output} was made with other settings ({before}); choose another --output-path."
            )
    elif output.is_dir() and any(output.iterdir()):
        raise UserError(
            f"{output} is a folder with other things in it; choose another --output-path."
        )
    write_json(known, config.fingerprint())


def _plan(output: Path, config: WebConfig) -> int:
    """Write the chunks that are not there, the count last; returns how many."""
    count = output / STATE / "plan.json"
    if count.is_file():
        return int(json.loads(count.read_text())["chunks"])
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


def _finished(output: Path, number: int, chunks: int) -> WebShard | None:
    """The record of a shard that is there as it was written; anything else is built again."""
    record = output / STATE / "records" / f"{number:05d}.json"
    if not record.is_file():
        return None
    try:
        shard = WebShard.from_json(json.loads(record.read_text()))
    except (ValueError, KeyError, TypeError):
        return None
    path = output / _shard_name(number, chunks)
    whole = (
        path.is_file()
        and path.stat().st_size == shard.num_bytes
        and file_sha256(path) == shard.sha256
    )
    return shard if whole else None


def _build(config: WebConfig, missing: Sequence[int], chunks: int) -> None:
    counters = Path(config.output_path) / STATE / "progress"
    total = min(len(missing) * config.shard_rows, config.limit or 2**62)
    with show_progress(total, lambda: frames_counted(counters)):
        if config.runner.needs_engine:
            run_pipeline(config.runner, _graph, config, list(missing), chunks)
            return
        for number in missing:
            build_shard(config, number, chunks)


def _graph(pipeline: beam.Pipeline, config: WebConfig, missing: list[int], chunks: int) -> None:
    import apache_beam as beam

    _ = (
        pipeline
        | "Chunks" >> beam.Create(missing, reshuffle=False)
        | "SpreadChunks" >> beam.Reshuffle()
        | "BuildWebShard" >> beam.Map(lambda number: build_shard(config, number, chunks).rows)
    )


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
        tuple(rejects),
    )
    write_json(output / STATE / "records" / f"{number:05d}.json", asdict(shard))
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


def _finish(output: Path, config: WebConfig, shards: Sequence[WebShard], built: int) -> WebResult:
    rejects = [reject for shard in shards for reject in shard.rejects]
    reasons = Counter(reject.reason for reject in rejects)
    rows = sum(shard.rows for shard in shards)
    lines = "".join(json.dumps(asdict(reject), ensure_ascii=False) + "\n" for reject in rejects)
    write_bytes(output / schema.REJECTS_FILE, lines.encode())
    entry = web_set(config.name)
    manifest = {
        "config": config.fingerprint(),
        "config_hash": content_hash(config.fingerprint()),
        "set": entry.name,
        "reference": entry.reference,
        "licence": entry.licence,
        "rows": rows,
        "size_in_mixture": min(rows, entry.cap or rows),
        "rejects": dict(sorted(reasons.items())),
        "dead_links_by_host": dict(_by_host(rejects)),
        "shards": [{k: v for k, v in asdict(shard).items() if k != "rejects"} for shard in shards],
    }
    write_json(output / WEB_MANIFEST, manifest)
    share = len(rejects) / max(1, rows + len(rejects))
    if share > config.max_reject_fraction or not rows:
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise LimitExceeded(
            f"{len(rejects)} of {rows + len(rejects)} examples are not there ({told}), more than "
            f"--max-reject-fraction {config.max_reject_fraction}; see {output / schema.REJECTS_FILE}."
        )
    return WebResult(str(output), rows, len(shards), built, dict(reasons))


def _by_host(rejects: Iterable[WebReject]) -> list[tuple[str, int]]:
    hosts = Counter(urlsplit(r.url).hostname or "" for r in rejects if r.url)
    return hosts.most_common(50)
