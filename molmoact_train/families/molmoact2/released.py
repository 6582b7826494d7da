"""Everything beside the weights of a released MolmoAct2 folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact_data.files.folders import write_json
from molmoact_train.families.molmoact2.fast import FAST_FOLDER
from molmoact_train.families.molmoact2.network.config import MolmoAct2Config
from molmoact_train.families.molmoact2.statistics import FORMAT, NormStats

TRAINED_FIELDS = "trained"
"""Key beside the tags in a run's statistics: fields of config.json that training decided."""


def finish(
    folder: Path, base: Path, config: Mapping[str, Any], statistics: Mapping[str, Any], dtype: str
) -> None:
    """`config.json`, `generation_config.json`, the statistics of all tags, and the action tokenizer.

    `statistics` is what a run of this family wrote down (tags, and fields of config.json that it decided), or empty.
    Without them the base's own files are kept as they are.
    """
    own = statistics if statistics.get("format") == FORMAT else {}
    fields = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": dtype}
    read = MolmoAct2Config.from_json(fields)
    changed = read.replaced(**own.get(TRAINED_FIELDS, {}))
    write_json(folder / "config.json", changed.to_json())
    path = folder / "generation_config.json"
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    ids = {"bos_token_id": read.bos_id, "eos_token_id": read.eos_id, "pad_token_id": read.pad_id}
    write_json(path, {**ids, **given})
    stats_path = base / read.norm_stats_filename
    stats = NormStats.read(stats_path) if stats_path.is_file() else NormStats("q01_q99", {})
    if own:
        tags = {k: v for k, v in own.items() if k != TRAINED_FIELDS}
        stats = stats.with_tags(NormStats.from_json(tags).tags)
    write_json(folder / read.norm_stats_filename, stats.to_json())
    if (base / FAST_FOLDER).is_dir() and not (folder / FAST_FOLDER).exists():
        shutil.copytree(base / FAST_FOLDER, folder / FAST_FOLDER)
