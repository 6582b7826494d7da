"""The network: our own implementation, loading and writing the released checkpoints."""

from molmoact_train.families.molmoact.network.config import (
    MolmoActAdapterConfig as MolmoActAdapterConfig,
    MolmoActConfig as MolmoActConfig,
    MolmoActLlmConfig as MolmoActLlmConfig,
    MolmoActVitConfig as MolmoActVitConfig,
    released_config as released_config,
)
from molmoact_train.families.molmoact.network.molmoact import (
    MolmoActForActionReasoning as MolmoActForActionReasoning,
    MolmoActModel as MolmoActModel,
    MolmoActOutput as MolmoActOutput,
    Savings as Savings,
)
