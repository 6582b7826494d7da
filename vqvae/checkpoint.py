"""One path -> a VQ-VAE with its recipe. Two layouts, told apart by content, converted both ways.

Ours: one safetensors file whose metadata holds the geometry, the recipe and how it was made (JSON).
Released: `vae-final.pt`, a pickle `{"weights": state dict}` (keys may start with `module.`, values may be
float16), read with `weights_only=True`; it says neither its recipe nor its image size, so those of the
release are assumed. Nothing here ever unpickles an object.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from molmoact_data.errors import UserError, first_line
from molmoact_data.files.folders import write_bytes
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.teachers.codebook import RELEASED as FETCHED, codebook_path
from molmoact_data.teachers.published import RELEASED_VQVAE
from vqvae.config import Geometry
from vqvae.model import VQVAE
from vqvae.recipe import RELEASED, Recipe

FORMAT = "molmoact-vqvae-1"
MODEL_FILE = "model.safetensors"
UNKNOWN_LICENCE = "not stated in the file"


@dataclass(frozen=True)
class Checkpoint:
    """A network in float32 on the CPU, in eval mode, and what its file says about it."""

    model: VQVAE
    recipe: Recipe
    licence: str = UNKNOWN_LICENCE
    training: dict[str, Any] = field(default_factory=dict)
    """How it was made: the resolved training configuration, the step, the data. Free-form, for people."""
    sha256: str = ""
    """Of the file it was read from; empty for a network that has no file yet."""


def resolve_path(path: str | Path) -> Path:
    """A checkpoint file, a training run's folder, which stands for the model in it, `released` or `embedded`."""
    path = codebook_path(path)
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise UserError(
            f"no VQ-VAE checkpoint at {path}. Give a .safetensors file or a run folder of `molmoact vqvae train`, or a "
            "vae-final.pt (`released` fetches it)."
        )
    return path


def load(path: str | Path) -> Checkpoint:
    """Read either layout. Raises `UserError` for a file that is neither.

    The licence is what the file says of itself; the released file says nothing, so where `released` fetches it, it is
    that of the repository it came from.
    """
    was_fetched = str(path) == FETCHED and not Path(path).exists()
    path = resolve_path(path)
    if is_git_lfs_pointer(path):
        raise UserError(
            f"{path} is a Git LFS pointer, not a codebook; run `git lfs pull` in its folder."
        )
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("rb") as file:
        is_zip_or_pickle = file.read(2) in (b"PK", b"\x80\x02")
    checkpoint = load_released(path) if is_zip_or_pickle else load_ours(path)
    checkpoint.model.eval().requires_grad_(requires_grad=False)
    licence = RELEASED_VQVAE.licence if was_fetched else checkpoint.licence
    return dataclasses.replace(checkpoint, sha256=sha256, licence=licence)


def load_ours(path: Path) -> Checkpoint:
    """Read our layout; geometry and recipe come from the file's own metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(
            f"{path} is neither a safetensors file nor a vae-final.pt: {error}"
        ) from None
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is a safetensors file but not a VQ-VAE of this package (format "
            f"{metadata.get('format')!r}, expected {FORMAT!r})."
        )
    config = json.loads(metadata["config"])
    model = VQVAE(Geometry(**config["geometry"]))
    _fill(model, state, path)
    recipe = Recipe(**config["recipe"])
    return Checkpoint(model, recipe, config["licence"], config["training"])


def save_ours(path: Path, checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> None:
    """Write our layout; the inverse of `load_ours` (exactly so in float32)."""
    config = {
        "geometry": dataclasses.asdict(checkpoint.model.geometry),
        "recipe": dataclasses.asdict(checkpoint.recipe),
        "licence": checkpoint.licence,
        "training": checkpoint.training,
    }
    state = {
        k: v.detach().cpu().to(dtype).contiguous() for k, v in checkpoint.model.state_dict().items()
    }
    metadata = {"format": FORMAT, "config": json.dumps(config, sort_keys=True)}
    write_bytes(path, to_safetensors(state, metadata=metadata))


def load_released(path: Path) -> Checkpoint:
    """Read `{"weights": state dict}`; the geometry is read off the shapes."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a plain state dict and was not opened (a pickle can run code): {first_line(error)}"
        ) from None
    if not (isinstance(content, dict) and isinstance(content.get("weights"), dict)):
        raise UserError(f"{path} does not have the released layout: a dict with the key 'weights'.")
    weights = {k.removeprefix("module."): v.float() for k, v in content["weights"].items()}
    model = VQVAE(released_geometry(weights, path))
    _fill(model, _from_released_names(weights), path)
    return Checkpoint(model, RELEASED)


def _fill(model: VQVAE, state: dict[str, Tensor], path: Path) -> None:
    """Every tensor is there, fits and is finite; `UserError` names the first that is not."""
    expected = model.state_dict()
    if odd := sorted(expected.keys() ^ state.keys()):
        what = "missing" if odd[0] in expected else "unknown"
        raise UserError(
            f"{path} is damaged or of another network: the tensor {odd[0]!r} is {what} ({len(odd)} such in all)."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{path} is damaged: {name!r} is {list(tensor.shape)}, the other shapes imply "
                f"{list(expected[name].shape)}."
            )
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path} is damaged: the tensor {name!r} holds NaN or infinite values.")
    model.load_state_dict(state)


def save_released(path: Path, checkpoint: Checkpoint) -> None:
    """Write the layout that the reference's scripts read (they cut `module.` off each key)."""
    geometry = checkpoint.model.geometry
    if geometry.num_code_levels != 1:
        raise UserError(
            f"the released layout holds one codebook, this checkpoint has {geometry.num_code_levels} "
            "(residual codes); it cannot be converted."
        )
    if geometry.image_size != Geometry.image_size:
        raise UserError(
            f"the released layout means {Geometry.image_size} pixels, this checkpoint was trained at "
            f"{geometry.image_size}; it cannot be converted."
        )
    names = _to_released_names(checkpoint.model.state_dict())
    weights = {f"module.{k}": v.detach().cpu().float() for k, v in names.items()}
    buffer = io.BytesIO()  # torch's own writer of files does not say what the system refused
    torch.save({"weights": weights}, buffer)
    write_bytes(path, buffer.getvalue())


_QUANTIZER_NAMES = {
    "codebook": "_vq_vae._embedding",
    "cluster_size": "_vq_vae._ema_cluster_size",
    "embed_sum": "_vq_vae._ema_w",
}


def _to_released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict -> the released one; the codebook loses its level axis."""
    return {
        _QUANTIZER_NAMES.get(k, k): v[0] if k in _QUANTIZER_NAMES else v for k, v in state.items()
    }


def _from_released_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_to_released_names`."""
    ours = {released: name for name, released in _QUANTIZER_NAMES.items()}
    return {ours.get(k, k): v[None] if k in ours else v for k, v in state.items()}


def released_geometry(weights: dict[str, Tensor], path: Path) -> Geometry:
    """Read the geometry off the shapes; the image size is the release's, which no shape tells."""
    try:
        codebook_size, code_dim = weights["_vq_vae._embedding"].shape
        hidden_dim = weights["encoder.0.weight"].shape[0]
    except KeyError as error:
        raise UserError(f"{path} is not a depth VQ-VAE: the key {error} is missing.") from None
    convolutions = [
        v
        for k, v in weights.items()
        if re.fullmatch(r"encoder\.\d+\.weight", k) and v.shape[-1] == 4
    ]
    blocks = [k for k in weights if re.fullmatch(r"encoder\.\d+\.net\.0\.weight", k)]
    return Geometry(
        grid_size=Geometry.image_size >> len(convolutions),
        codebook_size=codebook_size,
        code_dim=code_dim,
        hidden_dim=hidden_dim,
        num_res_blocks=len(blocks),
    )
