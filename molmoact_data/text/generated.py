"""A file of generated texts -> depth codes, traces, actions and everything that was wrong with them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data.errors import UserError
from molmoact_data.labels.actions import bin_centers, unnormalize_reference
from molmoact_data.statistics import (
    DEFAULT_NUM_BINS,
    bins_of,
    check_released_entry,
    read_entries,
    resolve_key,
)
from molmoact_data.text.prompts import parse


@dataclass(frozen=True)
class ActionDecoder:
    """The part of one `norm_stats` entry that decoding reads: q01, q99, mask."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...] | None
    num_bins: int = DEFAULT_NUM_BINS

    @classmethod
    def from_norm_stats(cls, norm_stats: Mapping[str, Any], key: str | None) -> ActionDecoder:
        """The entry asked for, or the only one. Raises UserError naming the keys."""
        name = resolve_key(list(norm_stats), key)
        check_released_entry(norm_stats[name], name)
        action = norm_stats[name]["action"]
        q01, q99, mask = tuple(action["q01"]), tuple(action["q99"]), action.get("mask")
        return cls(q01, q99, None if mask is None else tuple(mask), bins_of(norm_stats[name]))

    @classmethod
    def from_folder(
        cls,
        folder: Path | None,
        key: str | None,
        *,
        norm_stats: Path | None = None,
        action_tokenizer: str | None = None,
    ) -> ActionDecoder:
        """The statistics in a MolmoAct folder's config.json, or those of `norm_stats`."""
        if action_tokenizer is not None:
            raise UserError(
                "MolmoAct's actions are 256 bins: there is no action tokenizer to give."
            )
        if norm_stats is not None:
            return cls.from_norm_stats(read_entries(norm_stats), key)
        if folder is None:
            raise UserError(
                "give --norm-stats, the statistics that actions are un-normalised with."
            )
        entries = read_entries(folder / "config.json").get("norm_stats")
        if not isinstance(entries, dict):
            raise UserError(f"{folder}/config.json has no norm_stats: give --norm-stats.")
        return cls.from_norm_stats(entries, key)

    def decode(self, text: str) -> dict[str, Any]:
        """One generated text -> `depth_codes`, `traces`, `actions` (as the reference), `problems`."""
        parsed = parse(text, action_dim=len(self.q01), num_bins=self.num_bins)
        centres = bin_centers(
            np.array(parsed.action_bins, dtype=np.int64).reshape(-1, len(self.q01)), self.num_bins
        )
        actions = unnormalize_reference(centres, np.array(self.q01), np.array(self.q99), self.mask)
        return {
            "depth_codes": parsed.depth_codes,
            "traces": parsed.traces,
            "actions": actions.tolist(),
            "problems": parsed.problems,
        }


def open_texts(path: Path) -> Iterator[str]:
    """The texts of a JSON-lines file, one at a time; `-` reads standard input."""
    if str(path) == "-":
        yield from read_texts(sys.stdin, "standard input")
        return
    try:
        with path.open(encoding="utf-8-sig") as lines:
            yield from read_texts(lines, str(path))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from error


def read_texts(lines: Iterable[str], name: str) -> Iterator[str]:
    """The `text` of every non-empty JSON line. Raises UserError naming the line."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            obj = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number} is not valid JSON: {error}.") from error
        if not isinstance(obj, dict) or not isinstance(obj.get("text"), str):
            raise UserError(f"{name}, line {number} has no `text` string.")
        yield obj["text"]


def summary_line(number: int, decoded: Mapping[str, Any]) -> str:
    """One decoded text for a person."""
    codes = ", ".join(str(len(codes)) for codes in decoded["depth_codes"]) or "no"
    points = ", ".join(str(len(trace)) for trace in decoded["traces"]) or "no"
    problems = "; ".join(decoded["problems"]) or "none"
    return (
        f"{number}: {codes} depth codes, {points} trace points, {len(decoded['actions'])} action rows; "
        f"problems: {problems}"
    )
