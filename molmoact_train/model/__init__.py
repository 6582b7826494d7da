"""The network: our own implementation, loading and writing the released checkpoints."""

from molmoact_train.model.config import (
    MolmoActAdapterConfig as MolmoActAdapterConfig,
)
from molmoact_train.model.config import (
    MolmoActConfig as MolmoActConfig,
)
from molmoact_train.model.config import (
    MolmoActLlmConfig as MolmoActLlmConfig,
)
from molmoact_train.model.config import (
    MolmoActVitConfig as MolmoActVitConfig,
)
from molmoact_train.model.config import (
    released_config as released_config,
)
from molmoact_train.model.molmoact import (
    MolmoActForActionReasoning as MolmoActForActionReasoning,
)
from molmoact_train.model.molmoact import (
    MolmoActModel as MolmoActModel,
)
from molmoact_train.model.molmoact import (
    MolmoActOutput as MolmoActOutput,
)
from molmoact_train.model.molmoact import (
    Savings as Savings,
)
