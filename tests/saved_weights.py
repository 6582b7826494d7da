"""What a training checkpoint holds, read back without our export code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from molmoact_train.checkpoint import STATE_DIR, verify_checkpoint


def saved_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Whole weights on the CPU by their own names, without a model or other processes."""
    verify_checkpoint(folder)
    metadata = FileSystemReader(folder / STATE_DIR).read_metadata().state_dict_metadata
    wanted: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(wanted, checkpoint_id=folder / STATE_DIR, no_dist=True)
    return {name.removeprefix("model."): tensor for name, tensor in wanted.items()}
