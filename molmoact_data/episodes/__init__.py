"""Episode sources: where demonstrations come from (LeRobot v2.0, v2.1, v3.0; RLDS)."""

from molmoact_data.episodes.base import (
    CameraBatch,
    CameraFeature,
    EpisodeColumns,
    EpisodeRef,
    EpisodeSource,
    SourceInfo,
)
from molmoact_data.episodes.opening import open_source
from molmoact_data.episodes.selection import select_episodes

__all__ = [
    "CameraBatch",
    "CameraFeature",
    "EpisodeColumns",
    "EpisodeRef",
    "EpisodeSource",
    "SourceInfo",
    "open_source",
    "select_episodes",
]
