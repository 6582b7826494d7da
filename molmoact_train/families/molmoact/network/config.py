"""Shapes of MolmoAct, in the field names of the released `config.json`.

Nothing here is a guess at a released value: `from_pretrained` reads them from the checkpoint, and
`released_config` states the two published 7B sizes for tests, benchmarks and size estimates.
"""

from __future__ import annotations

from typing import Any, Literal

from transformers import PretrainedConfig


class MolmoActVitConfig(PretrainedConfig):
    """The image encoder. Only the blocks up to the deepest tapped one exist (`AdapterConfig.vit_layers`)."""

    model_type = "molmoact_vit"
    base_config_key = "vit_config"

    def __init__(
        self,
        hidden_size: int = 1152,
        intermediate_size: int = 4304,
        num_hidden_layers: int = 27,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 16,
        head_dim: int = 72,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-6,
        image_default_input_size: tuple[int, int] = (378, 378),
        image_patch_size: int = 14,
        image_num_pos: int = 729,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        initializer_range: float = 0.02,
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
        self.image_default_input_size = tuple(image_default_input_size)
        self.image_patch_size = image_patch_size
        self.image_num_pos = image_num_pos
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.initializer_range = initializer_range
        self.float32_attention = float32_attention
        self.use_cls_token = use_cls_token
        self.patch_bias = patch_bias
        self.pre_layernorm = pre_layernorm

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
        hidden_size: int = 1152,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 16,
        head_dim: int = 72,
        *,
        float32_attention: bool = True,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        hidden_act: str = "silu",
        intermediate_size: int = 18944,
        text_hidden_size: int = 3584,
        image_feature_dropout: float = 0.0,
        initializer_range: float = 0.02,
        image_padding_embed: str | None = None,
        pooling_attention_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vit_layers = list(vit_layers)
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


class MolmoActLlmConfig(PretrainedConfig):
    """The decoder: Qwen2.5 (pre-norm, qkv bias), OLMo-2 (post-norm, q/k norm) or Qwen3 (q/k norm per head)."""

    model_type = "molmoact_llm"
    base_config_key = "llm_config"
    rope_scaling = None
    """As the released files spell it; the base class would rename it to `rope_parameters`."""

    def __init__(
        self,
        hidden_size: int = 3584,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int = 4,
        head_dim: int = 128,
        vocab_size: int = 152064,
        additional_vocab_size: int = 128,
        intermediate_size: int = 18944,
        hidden_act: str = "silu",
        layer_norm_eps: float = 1e-6,
        rope_theta: float = 1_000_000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        max_position_embeddings: int = 4096,
        qk_norm_type: str = "olmo",
        embedding_dropout: float = 0.0,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        initializer_range: float = 0.02,
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
        image_patch_id: int | None = None,
        initializer_range: float = 0.02,
        n_action_bins: int = 256,
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


def _section(cls: type[Any], value: Any) -> Any:
    if value is None:
        return cls()
    return cls(**value) if isinstance(value, dict) else value


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
