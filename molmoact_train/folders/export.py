"""Any checkpoint of ours -> one folder in the released Hugging Face layout, a few tensors in memory at a time.

The folder loads with our class, with the released code (`auto_map` names it) and with vLLM, and carries everything:
weights, configuration with statistics, image processor, tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_free, new_folder, write_json
from molmoact_data.files.kinds import TRAINER_FILE
from molmoact_train import lora
from molmoact_train.checkpoint import (
    STATE_DIR,
    load_config,
    no_remarks,
    verify_checkpoint,
)
from molmoact_train.config import TrainConfig, to_json
from molmoact_train.folders.layout import (
    SHARD_BYTES,
    Dtype,
    ShardWriter,
    finish_folder,
    read_config,
    statistics_beside,
)
from molmoact_train.inputs import check_training_checkpoint
from molmoact_train.optim import released_name
from molmoact_train.weights import WeightFiles, resolve_model_folder


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: str
    num_tensors: int
    num_bytes: int
    dtype: str


def plan(
    checkpoint: str, output: Path, *, dtype: Dtype = "keep", overwrite: bool = False
) -> Exported:
    """What `export_folder` or `unshard` would write, from headers alone."""
    folder = Path(checkpoint)
    check_free(output, overwrite=overwrite, inputs=[folder])
    if (folder / TRAINER_FILE).is_file():
        sizes = [
            (math.prod(entry.size), entry.properties.dtype.itemsize)
            for _, entry in _stored_weights(folder)
        ]
    else:
        files = WeightFiles(resolve_model_folder(checkpoint))
        sizes = [(math.prod(files.shape(n)), files.item_bytes(n)) for n in files.names()]
    return Exported(str(output), len(sizes), planned_bytes(sizes, dtype), dtype)


def planned_bytes(sizes: Sequence[tuple[int, int]], dtype: Dtype) -> int:
    """Bytes of tensors given as (numbers, bytes of one as stored), written as `dtype`."""
    new = None if dtype == "keep" else getattr(torch, dtype).itemsize
    return sum(count * (new or stored) for count, stored in sizes)


# From a Hugging Face folder


def export_folder(
    checkpoint: str,
    output: Path,
    *,
    dtype: Dtype = "keep",
    norm_stats: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """A model folder, a Hub id or a training checkpoint (`RUN/stepN`) -> a complete folder.

    `norm_stats` are added to the checkpoint's own, entry by entry.
    """
    folder = Path(checkpoint)
    if (folder / TRAINER_FILE).is_file():
        return _export_training_checkpoint(
            folder,
            output,
            dtype,
            dict(norm_stats or {}),
            overwrite=overwrite,
            shard_bytes=shard_bytes,
        )
    base = resolve_model_folder(checkpoint)
    files = WeightFiles(base)
    with new_folder(output, overwrite=overwrite, inputs=[base]) as temporary:
        writer = ShardWriter(temporary, dtype, shard_bytes)
        for name in files.names():
            writer.add(name, files.read(name))
        writer.finish()
        stats = {**statistics_beside(base), **(norm_stats or {})}
        config = read_config(base)
        finish_folder(temporary, base, config, stats, stated_dtype(config, dtype))
    return Exported(str(output), writer.num_tensors, writer.num_bytes, dtype)


def stated_dtype(config: Mapping[str, Any], dtype: Dtype) -> str:
    """What `config.json` says about the weights' type."""
    if dtype != "keep":
        return dtype
    return config.get("dtype") or config.get("torch_dtype") or "float32"


# From a training checkpoint


def unshard(
    checkpoint: Path, output: Path, *, overwrite: bool = False, shard_bytes: int = SHARD_BYTES
) -> Exported:
    """`RUN/stepN` -> a model folder, or, from a LoRA run, a plain PEFT adapter folder."""
    config = _config_of(checkpoint)
    if not config.lora:
        return _export_training_checkpoint(
            checkpoint, output, "keep", {}, overwrite=overwrite, shard_bytes=shard_bytes
        )
    with new_folder(output, overwrite=overwrite, inputs=[checkpoint]) as temporary:
        weights = {lora.plain_name(n): t for n, t in stream_weights(checkpoint, shard_bytes)}
        adapted = {n.split(".lora_")[0] for n in weights if lora.is_adapter(n)}
        beside = any(not lora.is_adapter(n) for n in weights)
        targets = lora.names_of_targets(adapted, whole=beside)
        lora.save_adapter(
            temporary,
            weights,
            lora.LoraSettings.of(config),
            targets,
            base=config.checkpoint,
            revision=config.checkpoint_revision,
            statistics=statistics_beside(checkpoint),
            run=to_json(config),
        )
    num_bytes = sum(t.nbytes for t in weights.values())
    return Exported(str(output), len(weights), num_bytes, "keep")


def _export_training_checkpoint(
    checkpoint: Path,
    output: Path,
    dtype: Dtype,
    norm_stats: Mapping[str, Any],
    *,
    overwrite: bool,
    shard_bytes: int,
) -> Exported:
    run = _config_of(checkpoint)
    if run.lora:
        raise UserError(
            f"{checkpoint} holds a LoRA adapter, not a model. Write the adapter with `molmoact unshard`, then make "
            "a whole model with `molmoact merge-lora`."
        )
    base = resolve_model_folder(run.checkpoint, run.checkpoint_revision)
    with new_folder(output, overwrite=overwrite, inputs=[checkpoint, base]) as temporary:
        writer = ShardWriter(temporary, dtype, shard_bytes)
        for name, tensor in stream_weights(checkpoint, shard_bytes):
            writer.add(released_name(name), tensor)
        writer.finish()
        stats = {**statistics_beside(checkpoint), **norm_stats}
        config = read_config(base)
        stated = dtype if dtype != "keep" else "float32"  # training keeps fp32 master weights
        finish_folder(temporary, base, config, stats, stated)
        write_json(temporary / "train_config.json", to_json(run))
    return Exported(str(output), writer.num_tensors, writer.num_bytes, stated)


def _config_of(checkpoint: Path) -> TrainConfig:
    check_training_checkpoint(checkpoint)
    return load_config(checkpoint)


def stream_weights(checkpoint: Path, batch_bytes: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors of a distributed checkpoint by name, read at most `batch_bytes` at a time; moments are left."""
    verify_checkpoint(checkpoint)
    state = checkpoint / STATE_DIR
    batch: dict[str, Any] = {}
    size = 0
    for name, entry in _stored_weights(checkpoint):
        tensor = torch.empty(entry.size, dtype=entry.properties.dtype)
        if batch and size + tensor.nbytes > batch_bytes:
            yield from _load(batch, state)
            batch, size = {}, 0
        batch[name] = tensor
        size += tensor.nbytes
    yield from _load(batch, state)


def _stored_weights(checkpoint: Path) -> list[tuple[str, TensorStorageMetadata]]:
    """The model's tensors in a distributed checkpoint, by name."""
    metadata = FileSystemReader(checkpoint / STATE_DIR).read_metadata().state_dict_metadata
    return [
        (name, entry)
        for name, entry in sorted(metadata.items())
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    ]


def _load(batch: dict[str, Any], state: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with no_remarks():
        dcp.load(batch, checkpoint_id=state, no_dist=True)
    for name, tensor in batch.items():
        yield name.removeprefix("model."), tensor
