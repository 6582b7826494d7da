"""A folder in the released Hugging Face layout, as it is written: shards of weights, and everything beside them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from molmoact_data import schema
from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_json
from molmoact_data.files.kinds import TRAINER_FILE
from molmoact_data.files.typed import read_typed
from molmoact_train.families.registry import family_of
from molmoact_train.inputs import Dtype

SHARD_BYTES = 4 * 2**30
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model", "*.py")
_NOT_COPIED = ("config.json", INDEX, "train_config.json", "files.json", TRAINER_FILE)


@dataclass
class ShardWriter:
    """Safetensors files of bounded size, named as transformers expects once their number is known."""

    folder: Path
    dtype: Dtype = "keep"
    shard_bytes: int = SHARD_BYTES
    num_tensors: int = 0
    num_bytes: int = 0
    _pending: dict[str, torch.Tensor] = field(default_factory=dict)
    _pending_bytes: int = 0
    _files: list[list[str]] = field(default_factory=list)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor; a full shard is written at once."""
        if self.dtype != "keep" and tensor.is_floating_point():
            tensor = tensor.to(getattr(torch, self.dtype))
        tensor = tensor.detach().cpu().contiguous()
        if self._pending and self._pending_bytes + tensor.nbytes > self.shard_bytes:
            self._flush()
        self._pending[name] = tensor
        self._pending_bytes += tensor.nbytes
        self.num_tensors += 1
        self.num_bytes += tensor.nbytes

    def _flush(self) -> None:
        path = self.folder / f"{len(self._files)}.safetensors"
        save_file(self._pending, path, metadata={"format": "pt"})
        self._files.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the rest, the final names and, with several files, the index."""
        self._flush()
        if len(self._files) == 1:
            (self.folder / "0.safetensors").rename(self.folder / SINGLE)
            return
        weight_map = {}
        for number, names in enumerate(self._files):
            final = f"model-{number + 1:05d}-of-{len(self._files):05d}.safetensors"
            (self.folder / f"{number}.safetensors").rename(self.folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {"metadata": {"total_size": self.num_bytes}, "weight_map": weight_map}
        write_json(self.folder / INDEX, index)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` as it is, so that no field that we do not know is lost."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a checkpoint: it has no config.json.")
    return read_typed(dict[str, Any], path)


def statistics_beside(folder: Path) -> dict[str, Any]:
    """`dataset_statistics.json` of a run or an adapter; empty where there is none."""
    path = folder / schema.STATISTICS_FILE
    return read_typed(dict[str, Any], path) if path.is_file() else {}


def finish_folder(
    folder: Path, base: Path, config: Mapping[str, Any], statistics: Mapping[str, Any], dtype: str
) -> None:
    """Everything beside the weights: the base's small files, then what its family writes, then the statistics."""
    for pattern in _SMALL_FILES:
        for path in base.glob(pattern):
            if path.name not in _NOT_COPIED and not path.name.startswith("adapter_"):
                shutil.copy2(path, folder / path.name)
    family_of(base).finish_folder(folder, base, config, statistics, dtype)
    if statistics:
        write_json(folder / schema.STATISTICS_FILE, statistics)
