"""Everything beside the weights of a released MolmoAct folder, so that our code, the released code and vLLM load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError
from molmoact_data.files.folders import write_json
from molmoact_data.statistics import DEFAULT_NUM_BINS, bins_of
from molmoact_train.families.molmoact.processor import PROCESSOR_NAME, MolmoActProcessor

CODE_REPOSITORY = {"D": "allenai/MolmoAct-7B-D-0812", "O": "allenai/MolmoAct-7B-O-0812"}
"""Where the released modelling code lives; `auto_map` points there unless the folder brings its own."""


def finish(
    folder: Path, base: Path, config: Mapping[str, Any], norm_stats: Mapping[str, Any], dtype: str
) -> None:
    """Processor, generation settings, `config.json` with the merged statistics, and the addresses of the code."""
    processor = MolmoActProcessor.from_pretrained(base)
    if not (folder / PROCESSOR_NAME).is_file():
        processor.save_pretrained(folder)
    _write_generation_config(folder / "generation_config.json", processor)
    merged = {**(config.get("norm_stats") or {}), **norm_stats}
    out = {k: v for k, v in config.items() if k != "torch_dtype"}
    out |= {"norm_stats": merged, "dtype": dtype, "architectures": ["MolmoActForActionReasoning"]}
    out["n_action_bins"] = _common_bins(folder, config, merged)
    out["image_patch_id"] = processor.image_ids.patch
    write_json(folder / "config.json", out)
    _point_at_code(folder, out)


def _common_bins(folder: Path, config: Mapping[str, Any], norm_stats: Mapping[str, Any]) -> int:
    """The one number of bins that the released code decodes every entry with."""
    found = {key: bins_of(entry) for key, entry in norm_stats.items()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{key}: {bins}" for key, bins in found.items())
        raise UserError(
            f"{folder}: the statistics have different numbers of action bins ({listed}), but a model has one; equal "
            "action tokens would mean different actions. Run `molmoact retokenize --action-bins`."
        )
    return next(iter(found.values()), config.get("n_action_bins", DEFAULT_NUM_BINS))


def _write_generation_config(path: Path, processor: MolmoActProcessor) -> None:
    """What is there stays; the ids of begin, end and padding are added where they are missing."""
    ids = {
        "bos_token_id": processor.bos_id,
        "eos_token_id": processor.eos_id,
        "pad_token_id": processor.pad_id,
    }
    given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_json(path, {**ids, **given})


def _point_at_code(folder: Path, config: Mapping[str, Any]) -> None:
    """`auto_map` of all three classes; local if the folder holds the code, else the released repository."""
    variant = "O" if config["llm_config"]["norm_after"] else "D"
    local = (folder / "modeling_molmoact.py").is_file()
    where = "" if local else f"{CODE_REPOSITORY[variant]}--"
    for name, classes in {
        "config.json": {
            "AutoConfig": "configuration_molmoact.MolmoActConfig",
            "AutoModelForImageTextToText": "modeling_molmoact.MolmoActForActionReasoning",
        },
        PROCESSOR_NAME: {"AutoProcessor": "processing_molmoact.MolmoActProcessor"},
        "preprocessor_config.json": {
            "AutoProcessor": "processing_molmoact.MolmoActProcessor",
            "AutoImageProcessor": "image_processing_molmoact.MolmoActImageProcessor",
        },
    }.items():
        fields = json.loads((folder / name).read_text(encoding="utf-8"))
        fields["auto_map"] = {auto: where + path for auto, path in classes.items()}
        write_json(folder / name, fields)
