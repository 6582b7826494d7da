"""Which set is made into shards, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from molmoact_data.config import as_dict, build
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.web.pictures import FetchConfig
from pipelines.config import RunnerConfig


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


def web_config(values: Mapping[str, Any]) -> WebConfig:
    """Flat names, as on the command line, sorted into the dataclasses that own them."""
    parts: dict[str, type] = {"fetch": FetchConfig, "runner": RunnerConfig}
    owned = {part: {f.name for f in fields(cls)} for part, cls in parts.items()}
    top = {f.name for f in fields(WebConfig)} - set(parts)
    for key in values:
        if not any(key in names for names in (top, *owned.values())):
            raise unknown_name("configuration key", key, top.union(*owned.values()))
    for required in ("input_path", "output_path"):
        if required not in values:
            raise UserError(f"--{required.replace('_', '-')} is missing.")
    nested: dict[str, Any] = {
        part: build(cls, {k: v for k, v in values.items() if k in owned[part]})
        for part, cls in parts.items()
    }
    return build(WebConfig, {**{k: v for k, v in values.items() if k in top}, **nested})
