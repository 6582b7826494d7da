"""Shapes of MolmoAct, in the field names of the released `config.json`.

Nothing here is a guess at a released value: `from_pretrained` reads them from the checkpoint, and
`released_config` states the two published 7B sizes for tests, benchmarks and size estimates.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from transformers import PretrainedConfig

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


class MolmoActVitConfig(PretrainedConfig):
    """The image encoder. Only the blocks up to the deepest tapped one exist (`AdapterConfig.vit_layers`)."""

    model_type = "molmoact_vit"
    base_config_key = "vit_config"

    def __init__(
        self,
        hidden_size: Size = 1152,
        intermediate_size: Size = 4304,
        num_hidden_layers: Depth = 27,
        num_attention_heads: Size = 16,
        num_key_value_heads: Size = 16,
        head_dim: Size = 72,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: Share = 1e-6,
        image_default_input_size: tuple[Size, Size] = (378, 378),
        image_patch_size: Size = 14,
        image_num_pos: Size = 729,
        attention_dropout: Share = 0.0,
        residual_dropout: Share = 0.0,
        initializer_range: Finite = 0.02,
        *,
        float32_attention: bool = True,
        use_cls_token: bool = False,
        patch_bias: bool = True,
        pre_layernorm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.image_default_input_size = _tuple(image_default_input_size)
        self.image_patch_size = image_patch_size
        self.image_num_pos = image_num_pos
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.initializer_range = initializer_range
        self.float32_attention = float32_attention
        self.use_cls_token = use_cls_token
        self.patch_bias = patch_bias
        self.pre_layernorm = pre_layernorm
        _check(self)

    @property
    def grid_hw(self) -> tuple[int, int]:
        """Patches of one crop, (rows, columns)."""
        height, width = self.image_default_input_size
        return height // self.image_patch_size, width // self.image_patch_size


class MolmoActAdapterConfig(PretrainedConfig):
    """The connector: which ViT blocks are read, how 2x2 windows are pooled and projected.

    `pooling_attention_mask` (MolmoAct2): absent patches are neither averaged nor attended to.
    """

    model_type = ""  # the released files store an empty string here
    base_config_key = "adapter_config"

    def __init__(
        self,
        vit_layers: tuple[int, ...] = (-3, -9),
        hidden_size: Size = 1152,
        num_attention_heads: Size = 16,
        num_key_value_heads: Size = 16,
        head_dim: Size = 72,
        *,
        float32_attention: bool = True,
        attention_dropout: Share = 0.0,
        residual_dropout: Share = 0.0,
        hidden_act: str = "silu",
        intermediate_size: Size = 18944,
        text_hidden_size: Size = 3584,
        image_feature_dropout: Share = 0.0,
        initializer_range: Finite = 0.02,
        image_padding_embed: str | None = None,
        pooling_attention_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vit_layers = list(_tuple(vit_layers))
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.float32_attention = float32_attention
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.hidden_act = hidden_act
        self.intermediate_size = intermediate_size
        self.text_hidden_size = text_hidden_size
        self.image_feature_dropout = image_feature_dropout
        self.initializer_range = initializer_range
        self.image_padding_embed = image_padding_embed
        self.pooling_attention_mask = pooling_attention_mask
        _check(self, vit_layers=tuple(self.vit_layers))


class MolmoActLlmConfig(PretrainedConfig):
    """The decoder: Qwen2.5 (pre-norm, qkv bias), OLMo-2 (post-norm, q/k norm) or Qwen3 (q/k norm per head)."""

    model_type = "molmoact_llm"
    base_config_key = "llm_config"
    rope_scaling = None
    """As the released files spell it; the base class would rename it to `rope_parameters`."""

    def __init__(
        self,
        hidden_size: Size = 3584,
        num_hidden_layers: Depth = 28,
        num_attention_heads: Size = 28,
        num_key_value_heads: Size = 4,
        head_dim: Size = 128,
        vocab_size: Size = 152064,
        additional_vocab_size: Count = 128,
        intermediate_size: Size = 18944,
        hidden_act: str = "silu",
        layer_norm_eps: Share = 1e-6,
        rope_theta: Finite = 1_000_000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        max_position_embeddings: Size = 4096,
        qk_norm_type: str = "olmo",
        embedding_dropout: Share = 0.0,
        attention_dropout: Share = 0.0,
        residual_dropout: Share = 0.0,
        initializer_range: Finite = 0.02,
        *,
        qkv_bias: bool = True,
        use_qk_norm: bool = False,
        norm_after: bool = False,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        """`rope_parameters` is what a file says that the released code saved under transformers 5."""
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        if rope_parameters is not None:
            check_fields({"rope_parameters": rope_parameters}, {"rope_parameters": dict[str, Any]})
            kind = rope_parameters.get("rope_type", "default")
            rope_scaling = rope_scaling if kind == "default" else rope_parameters
            rope_theta = rope_parameters.get("rope_theta", rope_theta)
        if rope_scaling is not None:
            raise ValueError(
                f"rope_scaling={rope_scaling!r}: no released MolmoAct scales its rotary positions"
            )
        if use_qk_norm and qk_norm_type not in ("olmo", "qwen3"):
            raise ValueError(
                f"qk_norm_type={qk_norm_type!r}: 'olmo' (over all heads) and 'qwen3' (per head) exist"
            )
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.vocab_size = vocab_size
        self.additional_vocab_size = additional_vocab_size
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.rope_scaling = rope_scaling
        self.max_position_embeddings = max_position_embeddings
        self.qk_norm_type = qk_norm_type
        self.embedding_dropout = embedding_dropout
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.initializer_range = initializer_range
        self.qkv_bias = qkv_bias
        self.use_qk_norm = use_qk_norm
        self.norm_after = norm_after
        self.use_cache = use_cache
        _check(self, rope_parameters=None)


class MolmoActConfig(PretrainedConfig):
    """The whole model, plus what travels with the weights: `norm_stats`, `image_patch_id`."""

    model_type = "molmoact"
    sub_configs = {  # noqa: RUF012  the base class reads it as a plain attribute
        "llm_config": MolmoActLlmConfig,
        "vit_config": MolmoActVitConfig,
        "adapter_config": MolmoActAdapterConfig,
    }

    def __init__(
        self,
        vit_config: MolmoActVitConfig | dict[str, Any] | None = None,
        adapter_config: MolmoActAdapterConfig | dict[str, Any] | None = None,
        llm_config: MolmoActLlmConfig | dict[str, Any] | None = None,
        image_patch_id: TokenId | None = None,
        initializer_range: Finite = 0.02,
        n_action_bins: Size = 256,
        norm_stats: dict[str, Any] | None = None,
        *,
        use_cache: bool = True,
        ignore_image_masks: bool = False,
        tie_word_embeddings: bool = False,
        **kwargs: Any,
    ) -> None:
        """`ignore_image_masks=True` reproduces the released HF and vLLM code, which never adds 7B-O's
        padding embedding although training did."""
        # The sections first: the base class asks for the text section while it is being built.
        self.vit_config = _section(MolmoActVitConfig, vit_config)
        self.adapter_config = _section(MolmoActAdapterConfig, adapter_config)
        self.llm_config = _section(MolmoActLlmConfig, llm_config)
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        self.image_patch_id = image_patch_id
        self.initializer_range = initializer_range
        self.n_action_bins = n_action_bins
        self.norm_stats = norm_stats if norm_stats is not None else {}
        self.use_cache = use_cache
        self.ignore_image_masks = ignore_image_masks
        _check(self)

    @classmethod
    def from_folder(cls, folder: Path) -> MolmoActConfig:
        """Of a model folder. Raises `UserError` naming the file, the field and what is wrong with it."""
        path = folder / "config.json"
        fields = read_typed(dict[str, Any], path)
        try:
            return section(cls, fields)
        except ValueError as error:
            raise UserError(f"{path}: {error}.") from error

    def get_text_config(self, *_: Any, **__: Any) -> MolmoActLlmConfig:
        """What transformers' generation asks for cache sizes (the signature is its own)."""
        return self.llm_config

    @property
    def hidden_size(self) -> int:
        return self.llm_config.hidden_size

    @property
    def vocab_size(self) -> int:
        return self.llm_config.vocab_size

    @property
    def num_hidden_layers(self) -> int:
        return self.llm_config.num_hidden_layers

    @property
    def num_attention_heads(self) -> int:
        return self.llm_config.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        return self.llm_config.num_key_value_heads

    @property
    def head_dim(self) -> int:
        return self.llm_config.head_dim

    @property
    def max_position_embeddings(self) -> int:
        return self.llm_config.max_position_embeddings


def section(cls: type[Any], fields: Any) -> Any:
    """The fields that our class knows, as one of it. Raises `ValueError` for one that cannot be."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"a section of config.json is an object, found {repr(fields)[:60]}")
    known = hints_of(cls.__init__)
    return cls(**{name: value for name, value in fields.items() if name in known})


def _section(cls: type[Any], value: Any) -> Any:
    if value is None:
        return cls()
    return value if isinstance(value, cls) else section(cls, value)


def _tuple(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"a list of numbers is needed, found {repr(value)[:60]}")
    return tuple(value)


def _check(config: PretrainedConfig, **instead: Any) -> None:
    """Every field of a configuration against its annotation; `instead` of attributes that are kept otherwise."""
    known = hints_of(type(config).__init__)
    hints = {n: hint for n, hint in known.items() if n not in type(config).sub_configs}
    check_fields({**{n: getattr(config, n, None) for n in hints}, **instead}, hints)
    heads = getattr(config, "num_attention_heads", 1), getattr(config, "num_key_value_heads", 1)
    if heads[0] % heads[1]:
        raise ValueError(f"{heads[0]} attention heads cannot share {heads[1]} key-value heads")


def released_config(variant: Literal["D", "O"]) -> MolmoActConfig:
    """The published sizes: D = SigLIP2-so400m/14-384 + Qwen2.5-7B, O = CLIP ViT-L/14-336 + OLMo-2-7B."""
    if variant == "D":
        return MolmoActConfig(image_patch_id=152066)
    vit = MolmoActVitConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, head_dim=64,
        hidden_act="quick_gelu", layer_norm_eps=1e-5, image_default_input_size=(336, 336),
        image_num_pos=577, use_cls_token=True, patch_bias=False, pre_layernorm=True,
    )  # fmt: skip
    adapter = MolmoActAdapterConfig(
        vit_layers=(-2, -9), hidden_size=1024, head_dim=64, intermediate_size=11008,
        text_hidden_size=4096, image_padding_embed="pad_and_partial_pad",
    )  # fmt: skip
    llm = MolmoActLlmConfig(
        hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
        vocab_size=100864, intermediate_size=11008, rope_theta=500_000.0, qkv_bias=False,
        use_qk_norm=True, norm_after=True,
    )  # fmt: skip
    return MolmoActConfig(vit, adapter, llm, image_patch_id=100866)
