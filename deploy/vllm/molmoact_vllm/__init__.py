"""molmoact's first family in vLLM: a model class, and the grammar of its answers. No remote code."""

from __future__ import annotations

ARCHITECTURE = "MolmoActForActionReasoning"


def register() -> None:
    """Called by vLLM in each of its processes, several times in some."""
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from molmoact_vllm.config import ServedConfig

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        AutoConfig.register(ServedConfig.model_type, ServedConfig)
        ModelRegistry.register_model(ARCHITECTURE, f"molmoact_vllm.model:{ARCHITECTURE}")
