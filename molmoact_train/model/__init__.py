"""The network: our own implementation, loading and writing the released checkpoints."""

from molmoact_train.model.config import (
    MolmoActAdapterConfig as MolmoActAdapterConfig,
    MolmoActConfig as MolmoActConfig,
    MolmoActLlmConfig as MolmoActLlmConfig,
    MolmoActVitConfig as MolmoActVitConfig,
    released_config as released_config,
)
from molmoact_train.model.molmoact import (
    MolmoActForActionReasoning as MolmoActForActionReasoning,
    MolmoActModel as MolmoActModel,
    MolmoActOutput as MolmoActOutput,
    Savings as Savings,
)
