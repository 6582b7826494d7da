"""Which of MolmoAct's parameters train, decay, and at whose rate, by their names in the released checkpoints.

Three groups, as published: `llm`, `connector` (pooling, projector, pad embedding and the embeddings of the six
image tokens) and `vit`.
"""

from __future__ import annotations

from typing import Literal

from molmoact_train.families.molmoact.settings import FtEmbedding

Group = Literal["llm", "connector", "vit"]
GROUPS: tuple[Group, ...] = ("llm", "connector", "vit")

_CONNECTOR = ("image_pooling_2d.", "image_projector.", "pad_embed")
_INPUT_ROWS = "model.transformer.wte.embedding"
_FINAL_NORM = "model.transformer.ln_f.weight"
_HEAD = "lm_head.weight"
_NO_DECAY = (
    "wte.",
    "norm",
    "ln_f",
    "pre_ln",
    "positional_embedding",
    "class_embedding",
    "pad_embed",
)


def parameter_group(name: str) -> Group:
    """The group of a parameter. Raises ValueError for a name that belongs to none."""
    if name.startswith("model.vision_backbone."):
        inner = name.removeprefix("model.vision_backbone.")
        if inner.startswith(_CONNECTOR):
            return "connector"
        if inner.startswith("image_vit."):
            return "vit"
    elif name == "model.transformer.wte.new_embedding":
        return "connector"
    elif name.startswith(("model.transformer.", "lm_head.")):
        return "llm"
    raise ValueError(f"parameter {name!r} belongs to no group")


def trains_in_full(name: str, ft_embedding: FtEmbedding) -> bool:
    """Whether full fine-tuning updates a parameter; only embeddings, ln_f and head depend on the choice."""
    trained = {
        "all": (_INPUT_ROWS, _FINAL_NORM, _HEAD),
        "lm_head": (_FINAL_NORM, _HEAD),
        "ln_f": (_FINAL_NORM,),
        "wte": (_INPUT_ROWS,),
    }[ft_embedding]
    return name in trained or name not in (_INPUT_ROWS, _FINAL_NORM, _HEAD)


def decays(name: str) -> bool:
    """Whether weight decay applies: not to embeddings, norms and positions."""
    return not any(part in name for part in _NO_DECAY)
