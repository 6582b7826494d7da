"""Flags and YAML, one flat namespace, become a `PreprocessConfig`: preset, then file, then flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from molmoact_data.config import build, load_yaml
from molmoact_data.errors import UserError, unknown_name
from pipelines.job import PRESETS, LabelConfig
from pipelines.preprocess import PreprocessConfig
from pipelines.runners import RunnerConfig

# How the run is started, not what it is.
ACTIONS = frozenset({"config", "resume", "overwrite", "dry_run", "as_json", "camera", "preset"})
RUNNERS = (
    "local", "FlinkRunner", "PortableRunner", "DataflowRunner", "SparkRunner", "PrismRunner", "FnApiRunner",
)  # fmt: skip
RENAMED = {"beam_option": "beam_options"}


def preprocess_config(flags: Mapping[str, Any], config_file: Path | None) -> PreprocessConfig:
    """The frozen configuration of one run. A misspelt key names the nearest match."""
    values = load_yaml(config_file) if config_file else {}
    preset = flags.get("preset", values.pop("preset", None))
    values.update({RENAMED.get(k, k): v for k, v in flags.items() if k not in ACTIONS})
    if "depth_encoder" in values:
        values.setdefault("depth", "depth-anything-v2")
    return nested({**_preset(preset), **values})


def nested(values: Mapping[str, Any]) -> PreprocessConfig:
    """Sort flat names into the dataclasses that own them."""
    owners = {"labels": LabelConfig, "runner": RunnerConfig}
    names = {part: {f.name for f in fields(cls)} for part, cls in owners.items()}
    top = {f.name for f in fields(PreprocessConfig)} - set(owners)
    for key in values:
        if not any(key in known for known in (top, *names.values())):
            raise unknown_name("configuration key", key, top.union(*names.values()))
    for required in ("dataset_path", "output_path"):
        if required not in values:
            raise UserError(f"--{required.replace('_', '-')} is missing.")
    parts: dict[str, Any] = {
        part: build(cls, {k: v for k, v in values.items() if k in names[part]})
        for part, cls in owners.items()
    }
    _check_runner(parts["runner"].runner)
    return build(PreprocessConfig, {**{k: values[k] for k in values if k in top}, **parts})


def _check_runner(name: str) -> None:
    """A dotted name is a class of someone else's; Beam reads the others in any case."""
    if "." not in name and name.lower() not in {known.lower() for known in RUNNERS}:
        raise unknown_name("runner", name, RUNNERS)


def _preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PRESETS:
        raise unknown_name("preset", name, PRESETS)
    return PRESETS[name]()
