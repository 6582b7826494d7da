"""Which of MolmoAct2's parameters train, decay, and at whose rate, by their names in the released checkpoints.

Four groups, as published: `llm`, `connector` (pooling, projector and the embeddings of the image tokens), `vit`, and
`expert` (with the depth gate).
"""

from __future__ import annotations

from typing import Literal

from molmoact_train.families.molmoact2.settings import Settings

Group = Literal["llm", "connector", "vit", "expert"]
GROUPS: tuple[Group, ...] = ("llm", "connector", "vit", "expert")
EXPERT = ("model.action_expert.", "model.action_expert_depth_gate.")
_CONNECTOR = ("image_pooling_2d.", "image_projector.")
_INPUT_ROWS = "model.transformer.wte.embedding"
_FINAL_NORM = "model.transformer.ln_f.weight"
_HEAD = "lm_head.weight"
_FREQUENCIES = "model.transformer.rotary_emb."
_TRAINED = {
    "all": (_INPUT_ROWS, _FINAL_NORM, _HEAD),
    "lm_head": (_FINAL_NORM, _HEAD),
    "ln_f": (_FINAL_NORM,),
    "wte": (_INPUT_ROWS,),
    "none": (),
}
_NO_DECAY = ("wte.", "norm", "ln_f", "positional_embedding", ".bias")


def parameter_group(name: str) -> Group:
    """The group of a parameter. Raises ValueError for a name that belongs to none."""
    if name.startswith(EXPERT):
        return "expert"
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


def trains(name: str, settings: Settings) -> bool:
    """Whether training without LoRA updates a parameter."""
    is_expert = name.startswith(EXPERT)
    if is_expert:
        return settings.action_mode != "discrete"
    if settings.expert_only or name.startswith(_FREQUENCIES):
        return False
    chosen = _TRAINED[settings.ft_embedding]
    return name in chosen or name not in (_INPUT_ROWS, _FINAL_NORM, _HEAD)


def decays(name: str) -> bool:
    """Whether weight decay applies: not to embeddings, norms, positions and biases."""
    return not any(part in name for part in _NO_DECAY)
