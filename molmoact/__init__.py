"""Robot demonstrations in, an Action Reasoning Model out: the names for notebooks and other people's programs.

Everything here is imported when it is first used, so `import molmoact` costs nothing and needs neither torch nor Beam.
What is not listed here may change; see docs/python.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from molmoact_data.errors import UserError as UserError
    from molmoact_data.outputs.frames import FrameDataset as FrameDataset
    from molmoact_data.outputs.output import Output as Output
    from molmoact_data.policies import (
        ActionChunk as ActionChunk,
        Observation as Observation,
        PredictionFailed as PredictionFailed,
        load_policy as load_policy,
    )
    from molmoact_data.sources.opening import open_source as open_source
    from molmoact_data.statistics import DatasetStatistics as DatasetStatistics
    from molmoact_data.text.prompts import parse as parse
    from molmoact_train.families.loading import load_network as load_network
    from vqvae.codec import VQVAECodec as VQVAECodec

_PLACES = {
    "ActionChunk": "molmoact_data.policies",
    "DatasetStatistics": "molmoact_data.statistics",
    "FrameDataset": "molmoact_data.outputs.frames",
    "Observation": "molmoact_data.policies",
    "Output": "molmoact_data.outputs.output",
    "PredictionFailed": "molmoact_data.policies",
    "UserError": "molmoact_data.errors",
    "VQVAECodec": "vqvae.codec",
    "load_network": "molmoact_train.families.loading",
    "load_policy": "molmoact_data.policies",
    "open_source": "molmoact_data.sources.opening",
    "parse": "molmoact_data.text.prompts",
}
"""Name -> the module it is imported from."""

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("molmoact")
    if name not in _PLACES:
        raise AttributeError(
            f"module 'molmoact' has no attribute {name!r}; it has: {', '.join(__all__)}"
        )
    try:
        value = getattr(importlib.import_module(_PLACES[name]), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"molmoact.{name} needs the Python package {error.name!r}: pip install 'molmoact[all]', or the extra "
            "that has it"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
