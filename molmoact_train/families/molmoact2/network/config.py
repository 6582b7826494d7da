"""Shapes, token ids and settings of MolmoAct2, in the field names of the released `config.json`.

Everything is read from the file: no id, width or count has a default here that could stand in for a missing one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from molmoact_data.errors import UserError
from molmoact_data.files.typed import read_typed
from molmoact_train.families.fields import (
    Count,
    Depth,
    Finite,
    Share,
    Size,
    TokenId,
    check_fields,
    hints_of,
)
from molmoact_train.families.molmoact.network.config import (
    MolmoActAdapterConfig,
    MolmoActLlmConfig,
    MolmoActVitConfig,
    section,
)

MODEL_TYPE = "molmoact2"
ActionMode: TypeAlias = Literal["continuous", "discrete", "both"]
ImageAttention: TypeAlias = Literal["bidirectional", "causal"]
IMAGE_ATTENTION_KEY = "image_attention"
"""Our own key in config.json: how image tokens saw each other in training. Absent in released files."""


@dataclass(frozen=True)
class ActionExpertConfig:
    """`action_expert_config` of config.json."""

    hidden_size: Size
    num_layers: Depth
    num_heads: Size
    mlp_ratio: Finite
    ffn_multiple_of: Size
    timestep_embed_dim: Size
    context_layer_norm: bool
    qk_norm: bool
    qk_norm_eps: Share
    rope: bool
    causal_attn: bool
    dropout: Share = 0.0
    attn_dropout: Share = 0.0

    def __post_init__(self) -> None:
        check_fields(vars(self), hints_of(type(self)))
        if self.hidden_size % self.num_heads or not 0 < self.mlp_ratio <= 64:
            raise ValueError(
                f"an expert of width {self.hidden_size}, {self.num_heads} heads and mlp_ratio {self.mlp_ratio}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def intermediate_size(self) -> int:
        """`mlp_ratio` x width, rounded up to the multiple."""
        wanted = int(self.hidden_size * self.mlp_ratio)
        return -(-wanted // self.ffn_multiple_of) * self.ffn_multiple_of


@dataclass(frozen=True)
class FlowConfig:
    """`flow_matching_*` of config.json; t runs from 0 (noise) to 1 (data)."""

    num_steps: Depth
    """Euler steps of an answer."""
    cutoff: Finite
    time_offset: Finite
    time_scale: Finite
    beta_alpha: Finite
    beta_beta: Finite

    def __post_init__(self) -> None:
        check_fields(vars(self), hints_of(type(self)))
        if min(self.beta_alpha, self.beta_beta) <= 0:
            raise ValueError("flow_matching_beta_alpha and _beta are above 0")


@dataclass(frozen=True)
class TokenRange:
    """Start marker, end marker, output trigger and the first of `count` numbered tokens."""

    start: TokenId
    end: TokenId
    first: TokenId
    count: Size
    output: TokenId | None = None

    def __post_init__(self) -> None:
        check_fields(vars(self), hints_of(type(self)))

    def __contains__(self, token_id: object) -> bool:
        return isinstance(token_id, int) and self.first <= token_id < self.first + self.count


@dataclass(frozen=True)
class MolmoAct2Config:
    """The whole model. `fields` is config.json as it was read, so that nothing unknown is lost in writing."""

    vit: MolmoActVitConfig
    adapter: MolmoActAdapterConfig
    llm: MolmoActLlmConfig
    expert: ActionExpertConfig | None
    """None = a model that answers in action tokens only, or no robot model at all."""
    flow: FlowConfig | None
    image_patch_id: TokenId
    image_token_ids: tuple[TokenId, ...]
    """Every token of an image block; in bidirectional attention they see each other."""
    image_end_id: TokenId
    bos_id: TokenId
    eos_id: TokenId
    pad_id: TokenId
    action_tokens: TokenRange | None
    state_tokens: TokenRange | None
    depth_tokens: TokenRange | None
    action_mode: ActionMode
    max_action_dim: Depth
    max_action_horizon: Size
    n_obs_steps: Size
    mask_action_dim_padding: bool
    enable_depth_reasoning: bool
    num_depth_codes: Count
    depth_gate: bool
    depth_gate_per_layer: bool
    depth_gate_init_bias: Finite
    add_setup_tokens: bool
    add_control_tokens: bool
    norm_stats_filename: str
    image_attention: ImageAttention
    fields: Mapping[str, Any] = dataclasses.field(repr=False)

    def __post_init__(self) -> None:
        hints = hints_of(type(self))
        sections = {
            "vit",
            "adapter",
            "llm",
            "expert",
            "flow",
            "fields",
        }  # checked where they are made
        sections |= {"action_tokens", "state_tokens", "depth_tokens"}
        check_fields(vars(self), {n: hint for n, hint in hints.items() if n not in sections})
        if Path(self.norm_stats_filename).name != self.norm_stats_filename:
            raise UserError(
                f"norm_stats_filename {self.norm_stats_filename!r} is no file of the folder."
            )

    @classmethod
    def from_folder(cls, folder: Path) -> MolmoAct2Config:
        """From a checkpoint folder; `UserError` names what is missing or cannot be."""
        path = folder / "config.json"
        if not path.is_file():
            raise UserError(f"{folder} is not a checkpoint: it has no config.json.")
        fields = read_typed(dict[str, Any], path)
        try:
            return cls.from_json(fields)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MolmoAct2Config:
        """From the fields of config.json, with either spelling of `rope_theta`."""
        try:
            return _read(fields)
        except KeyError as error:
            raise UserError(f"the field {error.args[0]!r} is missing.") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"a field cannot be read: {error}.") from error

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`: the fields as read, with what this program may have changed."""
        out = dict(self.fields)
        out["action_mode"] = self.action_mode
        out["enable_depth_reasoning"] = self.enable_depth_reasoning
        if IMAGE_ATTENTION_KEY in out or self.image_attention != "bidirectional":
            out[IMAGE_ATTENTION_KEY] = self.image_attention
        if "rope_parameters" in out["text_config"]:
            out["text_config"] = _released_rope(out["text_config"])
        return out

    def replaced(self, **changes: Any) -> MolmoAct2Config:
        """A copy with other values for `action_mode`, `image_attention` or `enable_depth_reasoning`."""
        return dataclasses.replace(self, **changes)


def _read(fields: Mapping[str, Any]) -> MolmoAct2Config:
    if fields["model_type"] != MODEL_TYPE:
        raise UserError(f"model_type is {fields['model_type']!r}, not {MODEL_TYPE!r}.")
    adapter = section(MolmoActAdapterConfig, fields["adapter_config"])
    with_expert = fields["add_action_expert"]
    if with_expert and fields["action_expert_config"] is None:
        raise UserError("add_action_expert is true, but action_expert_config is null.")
    mode = _choice("action_mode", fields["action_mode"], ("continuous", "discrete", "both"))
    if not with_expert and mode != "discrete":
        raise UserError(f"action_mode {mode!r} needs an action expert, and there is none.")
    return MolmoAct2Config(
        vit=section(MolmoActVitConfig, fields["vit_config"]),
        adapter=adapter,
        llm=text_section(fields["text_config"]),
        expert=_expert(fields["action_expert_config"]) if with_expert else None,
        flow=_flow(fields) if with_expert else None,
        image_patch_id=fields["image_patch_id"],
        image_token_ids=image_token_ids(fields),
        image_end_id=fields["image_end_token_id"],
        bos_id=fields["bos_token_id"],
        eos_id=fields["eos_token_id"],
        pad_id=fields["pad_token_id"],
        action_tokens=_range(fields, "action"),
        state_tokens=_range(fields, "state"),
        depth_tokens=_range(fields, "depth"),
        action_mode=mode,
        max_action_dim=fields["max_action_dim"],
        max_action_horizon=fields["max_action_horizon"],
        n_obs_steps=fields["n_obs_steps"],
        mask_action_dim_padding=fields["mask_action_dim_padding"],
        enable_depth_reasoning=fields["enable_depth_reasoning"],
        num_depth_codes=fields["num_depth_codes"],
        depth_gate=bool(with_expert and fields["action_expert_depth_gate"]),
        depth_gate_per_layer=fields["action_expert_depth_gate_per_layer"],
        depth_gate_init_bias=fields["action_expert_depth_gate_init_bias"],
        add_setup_tokens=fields["add_setup_tokens"],
        add_control_tokens=fields["add_control_tokens"],
        norm_stats_filename=fields["norm_stats_filename"],
        image_attention=_choice(
            IMAGE_ATTENTION_KEY,
            fields.get(IMAGE_ATTENTION_KEY, "bidirectional"),
            ("bidirectional", "causal"),
        ),
        fields=fields,
    )


def _choice(name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; known: {', '.join(allowed)}.")
    return value


def text_section(fields: Mapping[str, Any]) -> MolmoActLlmConfig:
    """transformers 5 moves `rope_theta` into `rope_parameters`; both spellings are read."""
    plain = _released_rope(fields)
    if plain.get("rope_scaling_layers") is not None:
        raise UserError("rope_scaling_layers is set: scaled rotary positions are not supported.")
    if plain.get("tie_word_embeddings"):
        raise UserError("tie_word_embeddings is true: a tied LM head is not supported.")
    if "rope_theta" not in plain:
        raise KeyError("text_config.rope_theta")
    return section(MolmoActLlmConfig, plain)


def _released_rope(text_config: Mapping[str, Any]) -> dict[str, Any]:
    """`text_config` with `rope_theta` and `rope_scaling` instead of `rope_parameters`."""
    check_fields({"text_config": text_config}, {"text_config": dict[str, Any]})
    plain = dict(text_config)
    parameters = plain.pop("rope_parameters", None)
    if parameters is None:
        return plain
    check_fields({"rope_parameters": parameters}, {"rope_parameters": dict[str, Any]})
    if parameters.get("rope_type", "default") != "default":
        raise UserError(f"rope_parameters {parameters} scale the positions: not supported.")
    plain.setdefault("rope_theta", parameters["rope_theta"])
    plain.setdefault("rope_scaling", None)
    return plain


def _expert(fields: Any) -> ActionExpertConfig:
    check_fields({"action_expert_config": fields}, {"action_expert_config": dict[str, Any]})
    known = {f.name for f in dataclasses.fields(ActionExpertConfig)}
    return ActionExpertConfig(**{name: fields[name] for name in sorted(known)})


def _flow(fields: Mapping[str, Any]) -> FlowConfig:
    names = [f.name for f in dataclasses.fields(FlowConfig)]
    return FlowConfig(**{name: fields[f"flow_matching_{name}"] for name in names})


def _range(fields: Mapping[str, Any], kind: str) -> TokenRange | None:
    """The ids of one kind of numbered token; None where the checkpoint has none."""
    start = fields.get(f"{kind}_start_token_id")
    if start is None:
        return None
    return TokenRange(
        start=start,
        end=fields[f"{kind}_end_token_id"],
        first=fields[f"{kind}_token_start_id"],
        count=fields[f"num_{kind}_tokens"],
        output=fields.get(f"{kind}_output_token_id"),
    )


def image_token_ids(fields: Mapping[str, Any]) -> tuple[int, ...]:
    names = (
        "image_patch_id", "image_col_id", "image_start_token_id", "low_res_image_start_token_id",
        "frame_start_token_id", "image_end_token_id", "frame_end_token_id", "image_low_res_id",
    )  # fmt: skip
    return tuple(fields[name] for name in names if fields[name] is not None)
