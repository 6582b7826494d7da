"""Which robot a data set is of: a tag of the checkpoint, a published one, or a new one from the data's statistics.

A tag that the checkpoint knows keeps its own numbers and words: its policy was trained in those units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from molmoact_data.errors import UserError
from molmoact_data.statistics import DatasetStatistics
from molmoact_train.families.molmoact2.network import MolmoAct2Config
from molmoact_train.families.molmoact2.settings import Settings
from molmoact_train.families.molmoact2.statistics import NormStats, Tag, TagStatistics


@dataclass(frozen=True)
class Words:
    """How a published robot is named in prompts."""

    setup_type: str
    control_mode: str


_JOINTS, _DELTA = "absolute joint pose", "delta end-effector pose"
PUBLISHED: Mapping[str, Words] = {
    "yam_dual_molmoact2": Words("bimanual yam robotic arms in molmoact2", _JOINTS),
    "so100_so101_molmoact2": Words("single so100/so101 robotic arm in molmoact2", _JOINTS),
    "franka_droid": Words("single franka robotic arm in droid", _JOINTS),
    "franka_molmoact": Words("single franka robotic arm in molmoact2", _DELTA),
    "google_robot_bc_z": Words("google robot in bc_z", _DELTA),
    "google_robot_fractal": Words("google robot in rt_1", _DELTA),
    "widowx_bridge": Words("single widowx robotic arm in bridge", _DELTA),
    "libero": Words("single franka robotic arm in libero", _DELTA),
}
"""The tags of the published mixture and fine-tunes."""


def tag_for(
    statistics: DatasetStatistics,
    cameras: Sequence[str],
    chunk_size: int,
    stats: NormStats,
    config: MolmoAct2Config,
    settings: Settings,
) -> Tag:
    """The tag of a data set whose records hold chunks of `chunk_size` steps; `UserError` where it cannot be."""
    name = settings.tag_of(statistics.key)
    if name in stats.tags:
        tag = stats.tags[name]
        _check_numbers(tag, statistics)
        if tag.camera_keys and len(tag.camera_keys) != len(cameras):
            raise UserError(
                f"tag {name!r} is of {len(tag.camera_keys)} cameras ({', '.join(tag.camera_keys)}), the data show "
                f"{len(cameras)}: choose as many with --max-images, or give this robot a tag of its own."
            )
    else:
        tag = _new(name, statistics, cameras, chunk_size, config, settings)
    if tag.action_horizon > chunk_size:
        raise UserError(
            f"tag {name!r} acts {tag.action_horizon} steps ahead, the data {statistics.key!r} hold chunks of "
            f"{chunk_size}: run `molmoact retokenize` with --action-chunk-size {tag.action_horizon}."
        )
    _check_fits(tag, config)
    return tag


def _check_fits(tag: Tag, config: MolmoAct2Config) -> None:
    if tag.action_horizon > config.max_action_horizon:
        raise UserError(
            f"tag {tag.name!r} acts {tag.action_horizon} steps ahead, this checkpoint's expert at most "
            f"{config.max_action_horizon}: preprocess with a smaller --action-chunk-size."
        )
    if tag.action.dim > config.max_action_dim:
        raise UserError(
            f"tag {tag.name!r} has {tag.action.dim} action dimensions, this checkpoint's expert at most "
            f"{config.max_action_dim}."
        )


def _check_numbers(tag: Tag, statistics: DatasetStatistics) -> None:
    found = (statistics.action.dim, None if statistics.state is None else statistics.state.dim)
    wanted = (tag.action.dim, None if tag.state is None else tag.state.dim)
    if found[0] != wanted[0] or (wanted[1] is not None and found[1] != wanted[1]):
        raise UserError(
            f"tag {tag.name!r} of the checkpoint is of {wanted[0]} actions and {wanted[1]} state numbers, the data "
            f"{statistics.key!r} have {found[0]} and {found[1]}: this is another robot. Give it a tag of its own."
        )


def _new(
    name: str,
    statistics: DatasetStatistics,
    cameras: Sequence[str],
    chunk_size: int,
    config: MolmoAct2Config,
    settings: Settings,
) -> Tag:
    known = PUBLISHED.get(name)
    setup = settings.setup_type or (known.setup_type if known else None)
    control = settings.control_mode or (known.control_mode if known else None)
    if setup is None or control is None:
        raise UserError(
            f"tag {name!r} is new: say what the prompt calls the robot (--setup-type) and its actions "
            "(--control-mode), or name a known tag with --tags DATASET=TAG."
        )
    names = [
        f"gripper_{d}" if spec.gripper else f"dim_{d}"
        for d, spec in enumerate(statistics.spec.dimensions)
    ]
    state = None
    if statistics.state is not None:
        of_state = [f"state_{d}" for d in range(statistics.state.dim)]
        state = TagStatistics.of(
            statistics.state, of_state, statistics.num_transitions, normalize_gripper=True
        )
    return Tag.new(
        name,
        setup_type=setup,
        control_mode=control,
        camera_keys=[f"observation.images.{role}" for role in cameras],
        action_horizon=chunk_size,
        action_dim=config.max_action_dim,
        normalize_gripper=settings.normalize_gripper,
        action=TagStatistics.of(
            statistics.action, names, statistics.num_transitions,
            normalize_gripper=settings.normalize_gripper,
        ),
        state=state,
    )  # fmt: skip
