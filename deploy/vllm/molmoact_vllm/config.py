"""The folder's `config.json`, with what vLLM's decoder asks for besides."""

from __future__ import annotations

from typing import Any

from molmoact_train.families.molmoact.network.config import MolmoActConfig


class ServedConfig(MolmoActConfig):
    """No fact of its own: the same file gives the same network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm_config.rope_parameters = {
            "rope_type": "default",
            "rope_theta": self.llm_config.rope_theta,
        }
        self.llm_config.rope_scaling_layers = None
