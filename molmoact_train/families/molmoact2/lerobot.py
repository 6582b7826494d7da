"""LeRobot's own layout of a MolmoAct2 policy, both directions: what its `from_pretrained` reads and writes.

LeRobot keeps a policy's weights under `model.` in one file, beside its own config.json and two processor pipelines, and
points (`checkpoint_path`) at a folder in the released layout for the shapes and the tokenizer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from molmoact_data.errors import UserError
from molmoact_data.files.folders import check_free, new_folder, write_json
from molmoact_train.families.molmoact2 import released
from molmoact_train.families.molmoact2.fast import FAST_FOLDER
from molmoact_train.families.molmoact2.network import MolmoAct2Config
from molmoact_train.families.molmoact2.statistics import NormStats, Tag
from molmoact_train.folders.export import Exported
from molmoact_train.folders.layout import ShardWriter, finish_folder, read_config
from molmoact_train.weights import WeightFiles, resolve_model_folder

TYPE = "molmoact2"
_PREFIX = "model."
_WEIGHTS = "model.safetensors"
_STATE, _ACTION = "observation.state", "action"
_NORMALIZER = "policy_preprocessor_step_3_molmoact2_masked_normalizer.safetensors"
_UNNORMALIZER = "policy_postprocessor_step_1_molmoact2_masked_unnormalizer.safetensors"
_NORM_MAP = {"VISUAL": "IDENTITY", "STATE": "QUANTILES", "ACTION": "QUANTILES"}
FAST_HUB_ID = "allenai/MolmoAct2-FAST-Tokenizer"


def is_lerobot(folder: Path) -> bool:
    """Whether a folder holds a policy as LeRobot saves it."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and fields.get("type") == TYPE and "model_type" not in fields


def convert(
    checkpoint: str,
    output: Path,
    layout: str,
    *,
    base: str | None,
    tag: str | None,
    overwrite: bool,
    dry_run: bool,
) -> Exported | None:
    """The conversion that is asked for; None where the checkpoint neither comes from LeRobot nor goes there."""
    folder = Path(checkpoint)
    comes = is_lerobot(folder)
    if comes and layout == "lerobot":
        raise UserError(f"{folder} is in LeRobot's layout already.")
    if not comes and layout != "lerobot":
        return None
    if dry_run:
        files = WeightFiles(folder if comes else resolve_model_folder(checkpoint))
        sizes = [math.prod(files.shape(name)) * files.item_bytes(name) for name in files.names()]
        check_free(output, overwrite=overwrite, inputs=[files.folder])
        return Exported(str(output), len(sizes), sum(sizes), "keep")
    if comes:
        return from_lerobot(folder, output, base=base, tag=tag, overwrite=overwrite)
    return to_lerobot(checkpoint, output, tag=tag, overwrite=overwrite)


# Ours -> LeRobot's


def to_lerobot(
    checkpoint: str, output: Path, *, tag: str | None = None, overwrite: bool = False
) -> Exported:
    """A folder in the released layout -> LeRobot's, for one robot.

    LeRobot goes on reading shapes and tokenizer from the released folder (or Hub id): keep it where it is.
    """
    base = resolve_model_folder(checkpoint)
    config = MolmoAct2Config.from_folder(base)
    if config.max_action_dim != 32:
        raise UserError(
            f"{base} has {config.max_action_dim} action dimensions, LeRobot reads 32 and nothing else."
        )
    stats = NormStats.read(base / config.norm_stats_filename)
    robot = stats.tag(tag)
    if stats.mode != "q01_q99":
        raise UserError(f"{base} normalises by {stats.mode}, LeRobot by q01_q99 only.")
    if robot.state is None:
        raise UserError(f"tag {robot.name!r} has no state, and LeRobot's policy needs one.")
    where = str(base.resolve()) if Path(checkpoint).exists() else checkpoint
    with new_folder(output, overwrite=overwrite, inputs=[base]) as temporary:
        files = WeightFiles(base)
        tensors = {_PREFIX + name: files.read(name) for name in files.names()}
        save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
        write_json(temporary / "config.json", _policy_config(config, robot, where, base))
        _write_processors(temporary, config, robot, where, base)
    num_bytes = sum(t.nbytes for t in tensors.values())
    return Exported(str(output), len(tensors), num_bytes, str(config.fields.get("dtype")))


def _features(config: MolmoAct2Config, tag: Tag) -> tuple[dict[str, Any], dict[str, Any]]:
    """LeRobot's input and output features; image sizes are the network's, LeRobot scales to them anyway."""
    height, width = config.vit.image_default_input_size
    cameras = tag.camera_keys or ("observation.images.image",)
    inputs: dict[str, Any] = {
        key: {"type": "VISUAL", "shape": [3, height, width]} for key in cameras
    }
    assert tag.state is not None, "checked by the caller"
    inputs[_STATE] = {"type": "STATE", "shape": [tag.state.dim]}
    return inputs, {_ACTION: {"type": "ACTION", "shape": [tag.action.dim]}}


def _shared_fields(config: MolmoAct2Config, tag: Tag, where: str, base: Path) -> dict[str, Any]:
    """What the policy and its preprocessor both are told."""
    own_fast = base / FAST_FOLDER
    return {
        "checkpoint_path": where,
        "checkpoint_revision": None,
        "checkpoint_force_download": False,
        "action_mode": config.action_mode,
        "discrete_action_tokenizer": str(own_fast.resolve()) if own_fast.is_dir() else FAST_HUB_ID,
        "image_keys": list(tag.camera_keys),
        "setup_type": tag.setup_type,
        "control_mode": tag.control_mode,
        "normalize_language": True,
        "add_setup_tokens": config.add_setup_tokens,
        "add_control_tokens": config.add_control_tokens,
        "max_sequence_length": None,
        "chunk_size": tag.action_horizon,
    }


def _policy_config(config: MolmoAct2Config, tag: Tag, where: str, base: Path) -> dict[str, Any]:
    inputs, outputs = _features(config, tag)
    continuous = config.action_mode != "discrete"
    flow = config.flow
    return {
        "type": TYPE,
        **_shared_fields(config, tag, where, base),
        "input_features": inputs,
        "output_features": outputs,
        "n_obs_steps": config.n_obs_steps,
        "n_action_steps": tag.n_action_steps,
        "inference_action_mode": "continuous" if continuous else "discrete",
        "norm_tag": tag.name,
        "normalize_gripper": tag.normalize_gripper,
        "num_inference_steps": None if flow is None else flow.num_steps,
        "model_dtype": str(config.fields.get("dtype") or "float32"),
        "normalization_mapping": _NORM_MAP,
        "push_to_hub": False,
    }


def _write_processors(
    folder: Path, config: MolmoAct2Config, tag: Tag, where: str, base: Path
) -> None:
    """The pipelines that turn observations into inputs and answers into actions, with their statistics."""
    inputs, outputs = _features(config, tag)
    tensors = _statistics_tensors(tag)
    save_file(tensors, folder / _NORMALIZER)
    save_file(tensors, folder / _UNNORMALIZER)
    shared = _shared_fields(config, tag, where, base)
    frames = {"joint_signs": None, "joint_offsets": None}
    device = {"device": "cpu", "float_dtype": None}

    def step(name: str, settings: Mapping[str, Any], state: str | None = None) -> dict[str, Any]:
        return {"registry_name": name, "config": settings} | (
            {"state_file": state} if state else {}
        )

    def scaling(features: Mapping[str, Any]) -> dict[str, Any]:
        return {"eps": 1e-8, "features": features, "norm_map": _NORM_MAP}

    packing = {
        **shared,
        "allow_image_key_fallback": not tag.camera_keys,
        "num_state_tokens": config.state_tokens.count if config.state_tokens else 256,
        "max_action_dim": config.max_action_dim,
        "env_action_dim": tag.action.dim,
    }
    before = [
        step("rename_observations_processor", {"rename_map": {}}),
        step("to_batch_processor", {}),
        step("molmoact2_state_frame_transform", frames),
        step("molmoact2_masked_normalizer", scaling({**inputs, **outputs}), _NORMALIZER),
        step("molmoact2_clamp_normalized", {}),
        step("molmoact2_pack_inputs", packing),
        step("device_processor", device),
    ]
    after = [
        step("molmoact2_clamp_action", {}),
        step("molmoact2_masked_unnormalizer", scaling(outputs), _UNNORMALIZER),
        step("molmoact2_action_frame_transform", frames),
        step("device_processor", device),
    ]
    for name, steps in (("policy_preprocessor", before), ("policy_postprocessor", after)):
        write_json(folder / f"{name}.json", {"name": name, "steps": steps})


def _statistics_tensors(tag: Tag) -> dict[str, torch.Tensor]:
    """`feature.number` -> fp32 tensor."""
    found = {}
    for key, numbers in ((_ACTION, tag.action), (_STATE, tag.state)):
        assert numbers is not None, "checked by the caller"
        for name, values in numbers.values.items():
            found[f"{key}.{name}"] = torch.from_numpy(np.array(values))
        found[f"{key}.mask"] = torch.from_numpy(numbers.mask.astype(np.float32))
    return found


# LeRobot's -> ours


def from_lerobot(
    folder: Path,
    output: Path,
    *,
    base: str | None = None,
    tag: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """A policy that LeRobot saved -> the released layout, which our trainer and every other reader go on with.

    `base` replaces its `checkpoint_path`; `tag` names the robot where the policy names none.
    """
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    base_folder = resolve_model_folder(base or str(fields["checkpoint_path"]))
    tensors = _weights(folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    WeightFiles(base_folder).check_names(shapes)
    name = tag or fields.get("norm_tag") or "lerobot"
    robot = _tag_of(folder, fields, str(name), MolmoAct2Config.from_folder(base_folder))
    statistics = NormStats("q01_q99", {} if robot is None else {robot.name: robot}).to_json()
    statistics[released.TRAINED_FIELDS] = {"action_mode": fields["action_mode"]}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    with new_folder(output, overwrite=overwrite, inputs=[folder, base_folder]) as temporary:
        writer = ShardWriter(temporary)
        for tensor_name in sorted(tensors):
            writer.add(tensor_name, tensors[tensor_name])
        writer.finish()
        finish_folder(temporary, base_folder, read_config(base_folder), statistics, dtype)
    return Exported(str(output), writer.num_tensors, writer.num_bytes, dtype)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / _WEIGHTS
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is missing or damaged ({error}): it holds the policy's weights."
        ) from error
    adapters = [name for name in stored if ".lora_" in name]
    if adapters:
        raise UserError(
            f"{path} holds LoRA adapters ({adapters[0]}): merge them in LeRobot (PEFT merge_and_unload) and save again."
        )
    wrong = [name for name in stored if not name.startswith(_PREFIX)]
    if wrong:
        raise UserError(
            f"{path} is no MolmoAct2 policy of LeRobot: {wrong[0]} is not under `{_PREFIX}`."
        )
    return {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}


def _tag_of(
    folder: Path, fields: Mapping[str, Any], name: str, config: MolmoAct2Config
) -> Tag | None:
    """The robot of the policy, from the statistics of its preprocessor; None where it brings none."""
    path = folder / "policy_preprocessor.json"
    if not path.is_file():
        return None
    steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
    files = [s.get("state_file") for s in steps if "normalizer" in s.get("registry_name", "")]
    if not files or files[0] is None:
        return None
    numbers = load_file(folder / files[0])
    packed = next(s["config"] for s in steps if s["registry_name"] == "molmoact2_pack_inputs")

    def entry(key: str) -> dict[str, Any]:
        found = {
            n.removeprefix(f"{key}."): t.flatten().double().tolist()
            for n, t in numbers.items()
            if n.startswith(f"{key}.")
        }
        if "mask" in found:
            found["mask"] = [bool(value) for value in found["mask"]]
        return found

    state = entry(_STATE)
    return Tag.from_json(
        name,
        {
            "action_key": _ACTION,
            "state_keys": [_STATE] if state else [],
            "camera_keys": packed["image_keys"],
            "normalize_gripper": fields.get("normalize_gripper", False),
            "action_dim": config.max_action_dim,
            "action_horizon": packed["chunk_size"],
            "n_action_steps": fields["n_action_steps"],
            "setup_type": packed["setup_type"],
            "control_mode": packed["control_mode"],
            "action_stats": entry(_ACTION),
            "state_stats": state or None,
        },
    )
