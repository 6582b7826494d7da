"""What the `molmoact vqvae` commands do, without Typer: one function per command."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from molmoact_data.config import as_dict, load_yaml
from molmoact_data.console.tables import Lines, size
from molmoact_data.errors import UserError, unknown_name
from molmoact_data.files.folders import check_new_file, is_taken
from molmoact_data.labels.depth_scaling import depth_scaler
from molmoact_data.runs import check_run
from molmoact_data.teachers.codebook import codebook_path
from molmoact_data.teachers.published import DEPTH_WEIGHTS
from vqvae import files
from vqvae.config import TrainConfig, merge, resolve_config
from vqvae.depth.places import check_place
from vqvae.recipe import NAMED_RECIPES, RELEASED, Recipe


def train_config(
    output: Path, *, preset: str, config: Path | None, flags: dict[str, Any], resume: bool
) -> TrainConfig:
    """The resolved configuration; a resumed run starts from the one it was begun with."""
    values = load_yaml(config) if config is not None else {}
    if not resume or not is_taken(output):
        return resolve_config(preset, values, flags)
    from vqvae.training import folder as run_folder

    stored = as_dict(run_folder.read_config(output))
    return resolve_config("released", merge(stored, values), flags)


def check_training(config: TrainConfig, output: Path, *, resume: bool, overwrite: bool) -> None:
    """Every path of a run, before torch is imported."""
    for place in config.data:
        check_place(place)
    check_run(output, "--output-path", resume=resume, overwrite=overwrite)


def plan(config: TrainConfig) -> dict[str, Any]:
    """What a training would be, without reading the data."""
    from vqvae.training.learner import Learner

    learner = Learner(config.geometry, config.quantizer)
    parameters = sum(p.numel() for p in learner.parameters())
    teacher = DEPTH_WEIGHTS["vits"] if config.depth_encoder == "depth-anything-v2" else None
    return {
        "parameters": parameters,
        "tokens_per_image": config.geometry.num_tokens,
        "state_bytes": 16 * parameters,
        "downloads": {} if teacher is None else {"depth": teacher.describe()},
        "config": as_dict(config),
    }


def facts(plan: dict[str, Any]) -> dict[str, Lines | None]:
    """The plan in words, for a table."""
    config = plan["config"]
    steps = (
        f"at most {config['max_steps']:,}" if config["max_steps"] else f"{config['epochs']} epochs"
    )
    return {
        "data": list(config["data"]) or "none given",
        "frames": "not counted: the data are read by the run itself",
        "codes": f"{plan['tokens_per_image']} per image, out of {config['geometry']['codebook_size']:,}",
        "steps": f"{steps}, {config['batch_size']} images each",
        "parameters": f"{plan['parameters']:,}",
        "memory": f"{size(plan['state_bytes'])} of weights, gradients and moments, and the activations",
        "disk": f"about {size(plan['state_bytes'])} per checkpoint",
        "downloads": [f"{role}: {line}" for role, line in plan["downloads"].items()] or "none",
    }


def encode(
    checkpoint: Path,
    source: Path,
    target: Path,
    *,
    recipe: str,
    scaling: str,
    input_range: str | None,
    resize: str | None,
    device: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Depth file -> codes file. `input_range` and `resize` replace parts of the recipe."""
    check_new_file(target, overwrite=overwrite)
    if recipe not in ("checkpoint", *NAMED_RECIPES):
        raise unknown_name("depth recipe", recipe, ["checkpoint", *NAMED_RECIPES])
    dataclasses.replace(RELEASED, **_changes(input_range, resize))  # the names are known
    depth_scaler(scaling)
    place, depth_u8 = codebook_path(checkpoint), files.read_depth_u8(source, scaling)
    from vqvae.codec import VQVAECodec

    codec = VQVAECodec(place, recipe=_recipe(place, recipe, input_range, resize), device=device)
    codes = codec.encode(depth_u8)
    files.write_codes(target, codes)
    return {
        "maps": len(codes),
        "codes_per_map": codes.shape[1],
        "codes_used": len(np.unique(codes)),
        "output": str(target),
        "codec": codec.describe(),
    }


def _recipe(
    checkpoint: Path, name: str, input_range: str | None, resize: str | None
) -> str | Recipe:
    changes = _changes(input_range, resize)
    if not changes:
        return name
    from vqvae import checkpoint as checkpoint_io
    from vqvae.codec import choose_recipe

    stated = checkpoint_io.load(checkpoint).recipe
    return dataclasses.replace(choose_recipe(name, stated), **changes)


def _changes(input_range: str | None, resize: str | None) -> dict[str, Any]:
    given = {"range": input_range, "resize": resize}
    return {name: value for name, value in given.items() if value is not None}


def decode(
    checkpoint: Path,
    target: Path,
    *,
    tokens: str | None,
    source: Path | None,
    device: str,
    overwrite: bool,
) -> dict[str, Any]:
    """Codes, as text or as a file -> depth file."""
    check_new_file(target, overwrite=overwrite)
    if (tokens is None) == (source is None):
        raise UserError("give either --tokens TEXT or --input-path FILE (npy or text).")
    codes = files.parse_codes(tokens) if tokens is not None else files.read_codes(source)  # type: ignore[arg-type]
    place = codebook_path(checkpoint)
    from vqvae.codec import VQVAECodec

    codec = VQVAECodec(place, device=device)
    files.write_depth(target, codec.decode(codes))
    return {"maps": len(codes), "output": str(target)}


def convert(
    source: Path, target: Path, *, input_range: str | None, resize: str | None, overwrite: bool
) -> dict[str, Any]:
    """Released layout <-> ours; the suffix of `target` says which (.pt or .safetensors)."""
    check_new_file(target, overwrite=overwrite)
    if target.suffix not in (".safetensors", ".pt", ".pth"):
        raise UserError(
            f"{target.name}: write .pt for the released layout or .safetensors for ours."
        )
    place = codebook_path(source)
    from vqvae import checkpoint as checkpoint_io

    loaded = checkpoint_io.load(place)
    recipe = dataclasses.replace(loaded.recipe, **_changes(input_range, resize))
    loaded = dataclasses.replace(loaded, recipe=recipe)
    ours = target.suffix == ".safetensors"
    (checkpoint_io.save_ours if ours else checkpoint_io.save_released)(target, loaded)
    return {"output": str(target), "recipe": dataclasses.asdict(recipe)}
