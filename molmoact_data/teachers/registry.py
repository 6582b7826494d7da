"""Name of a teacher or a check -> `package.module:Attribute`, imported only when chosen."""

from __future__ import annotations

import importlib
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molmoact_data.errors import UserError, unknown_name

EMBEDDED_VQVAE = Path(__file__).parent / "weights" / "embedded_vqvae.safetensors"
"""The VQ-VAE that ships with the package, for rendered scenes."""

DEPTH_ESTIMATORS: Mapping[str, str] = {
    "depth-anything-v2": "molmoact_data.teachers.depth_anything:DepthAnythingV2",
    "embedded": "molmoact_data.teachers.embedded:EmbeddedDepth",
}
SAMPLE_CHECKS: Mapping[str, str] = {
    "molmoact": "molmoact_train.families.molmoact.encoder:sample_check",
    "molmoact2": "molmoact_train.families.molmoact2.row_check:sample_check",
}
"""Family of a checkpoint -> what `validate --processor` makes of its folder and an output."""
ANSWER_READERS: Mapping[str, str] = {
    "molmoact": "molmoact_data.text.generated:ActionDecoder.from_folder",
    "molmoact2": "molmoact_train.families.molmoact2.reading:AnswerReader.from_folder",
}
"""Family of a checkpoint -> what `parse --checkpoint` reads its texts with."""
DEPTH_TOKENIZERS: Mapping[str, str] = {
    "vqvae": "vqvae.codec:VQVAECodec",
}
SIMULATORS: Mapping[str, str] = {
    "simulator": "molmoact_robot.tabletop.frames:frames_of_split",
}
GRIPPER_POINTERS: Mapping[str, str] = {
    "molmo": "molmoact_data.teachers.molmo:MolmoPointer",
    "molmo2": "molmoact_data.teachers.molmo2:Molmo2Pointer",
    "column": "molmoact_data.teachers.column:RecordedPoints",
    "server": "molmoact_data.teachers.server:ServerPointer",
    "projection": "molmoact_data.teachers.projection:ProjectedPoints",
    "embedded": "molmoact_data.teachers.embedded:EmbeddedPointer",
}
POINTING_MODELS: Mapping[str, str] = {
    "molmo": "molmoact_train.families.molmo.pointing:MolmoPointing.from_folder",
    "molmo2": "molmoact_train.families.molmo2.pointing:Molmo2Pointing.from_folder",
}

# `robot_type` of the rendered datasets, the only ones the embedded teachers were trained for.
SIMULATED_ROBOT = "simulated_panda"


def resolve(kind: str, name: str, table: Mapping[str, str]) -> Any:
    """The class or factory registered under `name`; a missing optional dependency names the extra."""
    if name not in table:
        raise unknown_name(kind, name, table)
    module_name, _, attribute = table[name].partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{kind} {name!r} needs the package {error.name!r}, which is not installed. "
            "Install it with: pip install 'molmoact[data]'"
        ) from error
    return operator.attrgetter(attribute)(module)
