"""Generated texts of MolmoAct2 -> depth codes and actions in the robot's units, and what is wrong with them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molmoact_train.families.molmoact2 import prompts
from molmoact_train.families.molmoact2.fast import FastTokenizer, Undecodable
from molmoact_train.families.molmoact2.network import MolmoAct2Config
from molmoact_train.families.molmoact2.statistics import NormMode, NormStats, Tag

_DEPTH = re.compile(r"<depth_(\d+)>")
_ACTION = re.compile(r"<action_(\d+)>")


@dataclass(frozen=True)
class AnswerReader:
    """Reads what one checkpoint writes for one robot."""

    tag: Tag
    mode: NormMode
    fast: FastTokenizer | None
    """None = this checkpoint writes no action tokens."""
    num_codes: int
    codebook_size: int
    num_action_ids: int

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        key: str | None,
        *,
        norm_stats: Path | None = None,
        action_tokenizer: str | None = None,
    ) -> AnswerReader:
        """A folder in the released layout; `key` is the tag, `norm_stats` replaces its norm_stats.json."""
        config = MolmoAct2Config.from_folder(folder)
        stats = NormStats.read(norm_stats or folder / config.norm_stats_filename)
        writes = config.action_mode != "continuous" and config.action_tokens is not None
        return cls(
            tag=stats.tag(key),
            mode=stats.mode,
            fast=FastTokenizer.of_checkpoint(folder, action_tokenizer) if writes else None,
            num_codes=config.num_depth_codes,
            codebook_size=0 if config.depth_tokens is None else config.depth_tokens.count,
            num_action_ids=0 if config.action_tokens is None else config.action_tokens.count,
        )

    def decode(self, text: str) -> dict[str, Any]:
        """`depth_codes`, `traces` (always none), `actions` [H][D], `problems`, as of any family."""
        problems: list[str] = []
        codes = self._depth(text, problems)
        actions = self._actions(text, problems)
        return {
            "depth_codes": [] if codes is None else [codes],
            "traces": [],
            "actions": actions,
            "problems": problems,
        }

    def _depth(self, text: str, problems: list[str]) -> list[int] | None:
        span = _span(text, prompts.DEPTH, "depth", problems)
        if span is None:
            return None
        codes = [int(number) for number in _DEPTH.findall(span)]
        beyond = [code for code in codes if code >= self.codebook_size]
        if len(codes) != self.num_codes:
            problems.append(f"{len(codes)} depth codes instead of {self.num_codes}")
        if beyond:
            problems.append(f"depth code {beyond[0]} of a codebook of {self.codebook_size}")
        return codes

    def _actions(self, text: str, problems: list[str]) -> list[list[float]]:
        """Empty where the text holds no whole chunk."""
        span = _span(text, prompts.ACTION, "action", problems)
        if self.fast is None:
            if span is not None:
                problems.append("action tokens of a checkpoint that was trained without")
            return []
        if span is None:
            problems.append("no actions")
            return []
        ids = [int(number) for number in _ACTION.findall(span)]
        strange = [i for i in ids if i >= self.num_action_ids]
        if strange:
            problems.append(f"action token {strange[0]} of {self.num_action_ids}")
            return []
        try:
            chunk = self.fast.decode(ids, self.tag.action_horizon, self.tag.action.dim)
        except Undecodable as error:
            problems.append(f"the actions are no chunk: {error}")
            return []
        return self.tag.action.unnormalise(chunk, self.mode).tolist()


def _span(text: str, markers: tuple[str, str], kind: str, problems: list[str]) -> str | None:
    """What stands between the first start marker and the next end marker; None where none starts."""
    _, started, rest = text.partition(markers[0])
    if not started:
        return None
    span, ended, _ = rest.partition(markers[1])
    if not ended:
        problems.append(f"the {kind} answer has no end")
    return span
