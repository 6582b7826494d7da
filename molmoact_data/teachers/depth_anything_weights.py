"""Original Depth-Anything-V2 checkpoints -> transformers' network of the same geometry.

Everything but the number of attention heads can be read off the tensors' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings

# Published widths; 48 is the tiny network that the tests use.
HEADS_BY_WIDTH = {48: 4, 384: 6, 768: 12, 1024: 16, 1536: 24}
# 1-based blocks whose outputs the head reads, by depth of the encoder.
TAPPED_BLOCKS = {12: [3, 6, 9, 12], 24: [5, 12, 18, 24], 40: [10, 20, 30, 40]}

_BACKBONE = {
    "pretrained.cls_token": "backbone.embeddings.cls_token",
    "pretrained.pos_embed": "backbone.embeddings.position_embeddings",
    "pretrained.mask_token": "backbone.embeddings.mask_token",
    "pretrained.patch_embed.proj": "backbone.embeddings.patch_embeddings.projection",
    "pretrained.norm": "backbone.layernorm",
}
_BLOCK = {
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
_HEAD = {
    "output_conv1": "head.conv1",
    "output_conv2.0": "head.conv2",
    "output_conv2.2": "head.conv3",
}


class UnknownLayoutError(ValueError):
    """The tensors are not those of a Depth-Anything-V2 checkpoint."""


class OffsetEmbeddings(Dinov2Embeddings):
    """DINOv2's embeddings, resized with the 0.1 offset that the depth head was trained with.

    The original scales by (patches + 0.1) / sqrt(positions) instead of the exact ratio; transformers
    uses the exact one, which moves depth of non-square images by up to 5e-4 of its maximum.
    """

    def interpolate_pos_encoding(self, embeddings: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings [1, 1 + patches, C] for an input of `height` x `width` pixels."""
        rows, columns = height // self.patch_size, width // self.patch_size
        side = round((self.position_embeddings.shape[1] - 1) ** 0.5)
        if (rows, columns) == (side, side):
            return self.position_embeddings
        grid = self.position_embeddings[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = nn.functional.interpolate(
            grid.float(),
            scale_factor=((rows + 0.1) / side, (columns + 0.1) / side),
            mode="bicubic",
        )
        patches = resized.to(grid.dtype).flatten(2).transpose(1, 2)
        return torch.cat([self.position_embeddings[:, :1], patches], dim=1)


def build_from_original(state: Mapping[str, Tensor], *, num_heads: int | None = None) -> nn.Module:
    """The transformers network with the weights of an original state dict, in float32."""
    config = infer_config(state, num_heads=num_heads)
    model = DepthAnythingForDepthEstimation(config)
    model.backbone.embeddings = OffsetEmbeddings(config.backbone_config)
    converted = convert_state_dict(state)
    expected = set(model.state_dict())
    if converted.keys() != expected:
        odd = sorted(converted.keys() ^ expected)
        raise UnknownLayoutError(f"{len(odd)} tensors missing or unknown, for example {odd[0]!r}.")
    model.load_state_dict({name: tensor.float() for name, tensor in converted.items()})
    return model


def infer_config(
    state: Mapping[str, Tensor], *, num_heads: int | None = None
) -> DepthAnythingConfig:
    """Geometry from shapes; the head count from the published widths unless it is given."""
    try:
        width, _, patch, _ = state["pretrained.patch_embed.proj.weight"].shape
        neck = [state[f"depth_head.projects.{i}.weight"].shape[0] for i in range(4)]
        fusion = state["depth_head.scratch.layer1_rn.weight"].shape[0]
        head = state["depth_head.scratch.output_conv2.0.weight"].shape[0]
        positions = state["pretrained.pos_embed"].shape[1] - 1
    except KeyError as error:
        raise UnknownLayoutError(f"it has no tensor {error}.") from error
    blocks = {m[1] for name in state if (m := re.match(r"pretrained\.blocks\.(\d+)\.", name))}
    heads = num_heads or HEADS_BY_WIDTH.get(width)
    if heads is None or len(blocks) not in TAPPED_BLOCKS:
        raise UnknownLayoutError(
            f"an encoder of width {width} with {len(blocks)} blocks is not a published size "
            "(the number of attention heads cannot be read off the weights: give num_heads)."
        )
    backbone = Dinov2Config(
        image_size=round(positions**0.5) * patch,
        patch_size=patch,
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=heads,
        use_swiglu_ffn="pretrained.blocks.0.mlp.w12.weight" in state,
        out_indices=TAPPED_BLOCKS[len(blocks)],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    return DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=patch,
        reassemble_hidden_size=width,
        neck_hidden_sizes=neck,
        fusion_hidden_size=fusion,
        head_hidden_size=head,
    )


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Original names -> transformers' names; the fused qkv tensors are cut in three."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            prefix, _, kind = _convert_block(name).rpartition("attn.qkv.")
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                converted[f"{prefix}attention.attention.{part}.{kind}"] = piece
        else:
            converted[convert_name(name)] = tensor
    return converted


def convert_name(name: str) -> str:
    """One original tensor name -> transformers' name. Raises `UnknownLayoutError`."""
    if name.startswith("pretrained.blocks."):
        return _replace_first(_convert_block(name), _BLOCK)
    if name.startswith("pretrained."):
        return _replace_first(name, _BACKBONE)
    head = name.removeprefix("depth_head.")
    scratch = head.removeprefix("scratch.")
    if match := re.fullmatch(r"projects\.(\d)\.(\w+)", head):
        return f"neck.reassemble_stage.layers.{match[1]}.projection.{match[2]}"
    if match := re.fullmatch(r"resize_layers\.(\d)\.(\w+)", head):
        return f"neck.reassemble_stage.layers.{match[1]}.resize.{match[2]}"
    if match := re.fullmatch(r"layer(\d)_rn\.(\w+)", scratch):
        return f"neck.convs.{int(match[1]) - 1}.{match[2]}"
    if match := re.fullmatch(r"refinenet(\d)\.(.+)", scratch):
        return f"neck.fusion_stage.layers.{4 - int(match[1])}.{_convert_fusion(match[2])}"
    if name.startswith("depth_head.scratch.output_conv"):
        return _replace_first(scratch, _HEAD)
    raise UnknownLayoutError(f"tensor {name!r} has no place in the network.")


def _convert_block(name: str) -> str:
    return name.replace("pretrained.blocks.", "backbone.encoder.layer.")


def _convert_fusion(name: str) -> str:
    name = name.replace("out_conv", "projection").replace("resConfUnit", "residual_layer")
    return re.sub(r"\.conv(\d)\.", r".convolution\1.", name)


def _replace_first(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if old in name:
            return name.replace(old, new)
    return name
