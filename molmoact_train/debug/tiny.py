"""Tiny random checkpoints of any family, for the `debug` stage, the demo and the tests. Nothing is downloaded."""

from __future__ import annotations

from molmoact_train.families.molmoact.tiny import (
    SPLIT_PATTERN as SPLIT_PATTERN,
    TinySize as TinySize,
    tiny_config as tiny_config,
    tiny_processor as tiny_processor,
    tiny_tokenizer as tiny_tokenizer,
    write_tiny_checkpoint as write_tiny_checkpoint,
)
