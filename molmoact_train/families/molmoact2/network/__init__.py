"""The network: our own implementation, loading and writing the released checkpoints."""

from molmoact_train.families.molmoact2.network.config import (
    ActionExpertConfig as ActionExpertConfig,
    MolmoAct2Config as MolmoAct2Config,
)
from molmoact_train.families.molmoact2.network.expert import ActionExpert as ActionExpert
from molmoact_train.families.molmoact2.network.molmoact2 import (
    MolmoAct2 as MolmoAct2,
    VisionLanguageModel as VisionLanguageModel,
)
