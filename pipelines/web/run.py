"""General vision-language sets -> Parquet shards of conversations with their pictures inside.

The plan (every example, in the order of its files) is written first, a chunk per shard; a worker reads its chunk,
fetches the pictures, writes its shard whole and then a record of it. So a run that is killed goes on where it was, on
one machine or on a cluster that shares the output folder, and ends with the same bytes.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from molmoact_data import schema
from molmoact_data.config import content_hash
from molmoact_data.errors import LimitExceeded, UserError
from molmoact_data.files.folders import write_bytes, write_json
from molmoact_data.files.typed import read_typed
from molmoact_data.web.catalogue import web_set
from molmoact_data.web.measures import merged
from molmoact_data.web.pictures import PictureFetcher
from molmoact_data.web.rows import MANIFEST_FILE
from pipelines.engine.runners import run_pipeline
from pipelines.shards.progress import frames_counted, show_progress
from pipelines.web.config import WebConfig
from pipelines.web.page import write_web_report
from pipelines.web.shards import (
    PICTURES,
    STATE,
    WebReject,
    WebShard,
    build_shard,
    finished,
    write_plan,
)

if TYPE_CHECKING:
    import apache_beam as beam

logger = logging.getLogger(__name__)
SECONDS_PER_PICTURE = 0.5
"""What a plan reckons for one request over the open network; an assumption, said where it is used."""


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
    chunks = write_plan(output, config)
    fetcher = PictureFetcher(Path(config.input_path) / PICTURES, config.fetch)
    if config.retry_dead_links:
        logger.info("%d dead links are asked again", fetcher.forget_verdicts())
    missing = [number for number in range(chunks) if finished(output, number, chunks) is None]
    _build(config, missing, chunks)
    shards = [finished(output, number, chunks) for number in range(chunks)]
    done = [shard for shard in shards if shard is not None]
    if len(done) < chunks:
        raise UserError(
            f"{chunks - len(done)} of {chunks} shards are not there; run again with --resume."
        )
    return _finish(output, config, done, len(missing))


def _claim(output: Path, config: WebConfig) -> None:
    known = output / STATE / "config.json"
    if (output / MANIFEST_FILE).is_file() or known.is_file():
        if not config.resume:
            raise UserError(
                f"{output} exists already: --resume goes on with it, or choose another --output-path."
            )
        before = read_typed(dict[str, Any], known if known.is_file() else output / MANIFEST_FILE)
        before = before.get("config", before)
        if before != config.fingerprint():
            raise UserError(
                f"{output} was made with other settings ({before}); choose another --output-path."
            )
    elif output.is_dir() and any(path.is_file() for path in output.rglob("*")):
        raise UserError(
            f"{output} is a folder with other things in it; choose another --output-path."
        )
    write_json(known, config.fingerprint())


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
        "measures": merged(shard.measures for shard in shards).to_json(),
        "shards": [_listed(shard) for shard in shards],
    }
    if rows:
        write_web_report(output, manifest)
    write_json(output / MANIFEST_FILE, manifest)
    share = len(rejects) / max(1, rows + len(rejects))
    if share > config.max_reject_fraction or not rows:
        told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise LimitExceeded(
            f"{len(rejects)} of {rows + len(rejects)} examples are not there ({told}), more than "
            f"--max-reject-fraction {config.max_reject_fraction}; see {output / schema.REJECTS_FILE}."
        )
    return WebResult(str(output), rows, len(shards), built, dict(reasons))


def _listed(shard: WebShard) -> dict[str, Any]:
    """What the manifest says of one shard; the rejects and measures of all stand beside."""
    return {k: v for k, v in shard.to_json().items() if k not in ("rejects", "measures")}


def _by_host(rejects: Iterable[WebReject]) -> list[tuple[str, int]]:
    hosts = Counter(urlsplit(r.url).hostname or "" for r in rejects if r.url)
    return hosts.most_common(50)


def plan_web(config: WebConfig) -> dict[str, Any]:
    """What a run would do, from the raw files alone; nothing is fetched or written."""
    entry = web_set(config.name)
    examples = 0
    hosts: Counter[str] = Counter()
    for example in islice(entry.examples(Path(config.input_path), config.split), config.limit):
        examples += 1
        if example.picture.url:
            hosts[urlsplit(example.picture.url).hostname or ""] += 1
    return {
        "set": entry.name,
        "licence": entry.licence,
        "examples": examples,
        "addresses": hosts.total(),
        "hosts": len(hosts),
        "busiest_host": hosts.most_common(1)[0][0] if hosts else None,
        "hours": _fetching_hours(hosts, config),
    }


def _fetching_hours(hosts: Mapping[str, int], config: WebConfig) -> float:
    """At `SECONDS_PER_PICTURE` a picture: one host answers `per_host` at a time, one worker asks `threads`."""
    most_at_one = max(hosts.values(), default=0) / config.fetch.per_host
    at_all = sum(hosts.values()) / (config.threads * config.runner.workers)
    return SECONDS_PER_PICTURE * max(most_at_one, at_all) / 3600
