"""MolmoAct2 as a `Policy`: what a robot, a server or an evaluation asks for the next actions.

Modes: `continuous` solves the flow from noise to actions; `discrete` writes action tokens under the grammar. With
`think` the depth answer comes first and, with `adaptive`, unchanged cells keep their code.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molmoact_data.errors import UserError
from molmoact_data.labels.depth_memory import CHANGE_RULES, DepthMemory
from molmoact_data.policies import ActionChunk, Observation, PolicyInfo, PredictionFailed
from molmoact_data.processes import pick_device
from molmoact_train.families.molmoact2 import think
from molmoact_train.families.molmoact2.answers import ActionGrammar, write_actions, write_freely
from molmoact_train.families.molmoact2.decoding import Decoding
from molmoact_train.families.molmoact2.fast import FastTokenizer, Undecodable, read_answer
from molmoact_train.families.molmoact2.network import MolmoAct2
from molmoact_train.families.molmoact2.network.flow import euler
from molmoact_train.families.molmoact2.network.folder import load
from molmoact_train.families.molmoact2.processor import MolmoAct2Processor, Prompt
from molmoact_train.families.molmoact2.statistics import NormStats, Tag
from molmoact_train.weights import fingerprint, resolve_model_folder

logger = logging.getLogger(__name__)

Mode: TypeAlias = Literal["auto", "continuous", "discrete"]
Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
FREE_TOKENS_PER_STEP = 16


@dataclass(frozen=True)
class ActOptions:
    """How to answer."""

    mode: Literal["continuous", "discrete"]
    think: bool = False
    adaptive: bool = True
    """Keep the codes of unchanged cells."""
    change_rule: Literal["consistent", "original"] = "consistent"
    """Of `CHANGE_RULES`: what a black picture does to the memory; `original` = nothing."""
    num_steps: int | None = None
    """Euler steps; None = the checkpoint's."""
    constrained: bool = True
    """Discrete answers under the grammar; False = greedy over the whole vocabulary, as in the original."""
    whole_chunk: bool = False
    """All steps of the tag's horizon instead of the `n_action_steps` that are executed."""


@dataclass
class Episode:
    """What is remembered within one episode."""

    name: str | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)
    warned: bool = False

    def start(self, name: str, memory: DepthMemory) -> None:
        """Another episode, of which nothing is known."""
        self.name, self.warned = name, False
        memory.forget()


def rollout_seed(eval_seed: int, first_rollout: int, batch: int) -> int:
    """The generator's seed of the released evaluation for `batch` roll-outs that start with `first_rollout`."""
    first = eval_seed + first_rollout * batch
    return sum((i + 1) * (first + i) for i in range(batch)) % (2**63 - 1)


class MolmoAct2Policy:
    """One checkpoint, one robot (tag), one way of answering."""

    def __init__(
        self,
        model: MolmoAct2,
        processor: MolmoAct2Processor,
        tag: Tag,
        options: ActOptions,
        *,
        fast: FastTokenizer | None = None,
        checkpoint: str = "",
        sha256: str = "",
    ) -> None:
        _check(model, tag, options, fast)
        self.model, self.processor, self.tag, self.options = model.eval(), processor, tag, options
        self.fast = fast
        actions = model.config.action_tokens
        if options.mode == "discrete" and fast is not None and actions is not None:
            self._grammar = ActionGrammar.of(fast, actions.count)
        rule = CHANGE_RULES[options.change_rule]
        self.memory = DepthMemory(
            rule.acting_resize, rule.black_forgets, model.config.num_depth_codes
        )
        self.updated_cells, self.asked_cells = 0, 0
        self._names = (checkpoint, sha256)
        self.reset()

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        dtype: Dtype = "auto",
        statistics_key: str | None = None,
        statistics: str | Path | None = None,
        mode: Mode = "auto",
        think: bool | None = None,
        adaptive: bool = True,
        change_rule: Literal["consistent", "original"] = "consistent",
        num_steps: int | None = None,
        constrained: bool = True,
        action_tokenizer: str | Path | None = None,
        seed: int | None = None,
    ) -> MolmoAct2Policy:
        """A model folder or Hub id in the released layout.

        `statistics_key` is the tag; `statistics` replaces the checkpoint's norm_stats.json. `mode="auto"` is
        continuous where there is an expert; `think=None` thinks where the checkpoint was trained to. The action
        tokenizer is only needed for discrete answers.
        """
        folder = resolve_model_folder(str(folder))
        processor = MolmoAct2Processor.from_folder(folder)
        if statistics is not None:
            processor.stats = NormStats.read(Path(statistics))
        config = processor.config
        if mode == "auto":
            mode = "continuous" if config.expert is not None else "discrete"
        options = ActOptions(
            mode=mode,
            think=config.enable_depth_reasoning if think is None else think,
            adaptive=adaptive,
            change_rule=change_rule,
            num_steps=num_steps,
            constrained=constrained,
        )
        tag = processor.stats.tag(statistics_key)
        fast = FastTokenizer.of_checkpoint(folder, action_tokenizer) if mode == "discrete" else None
        chosen = pick_device(device)
        if dtype == "auto":
            dtype = "bfloat16" if chosen.type == "cuda" else "float32"
        policy = cls(
            load(folder, device=chosen, dtype=dtype), processor, tag, options,
            fast=fast, checkpoint=str(folder), sha256=fingerprint(folder),
        )  # fmt: skip
        policy.reset(seed)
        return policy

    @property
    def info(self) -> PolicyInfo:
        tag, options = self.tag, self.options
        return PolicyInfo(
            family="molmoact2",
            checkpoint=self._names[0],
            sha256=self._names[1],
            num_cameras=len(tag.camera_keys) or 1,
            action_dim=tag.action.dim,
            horizon=tag.action_horizon if options.whole_chunk else tag.n_action_steps,
            state_dim=None if tag.state is None else tag.state.dim,
            statistics_key=tag.name,
            extra={"mode": options.mode, "think": options.think, "num_steps": self.num_steps,
                   "camera_keys": list(tag.camera_keys), "max_cameras": self._max_cameras()},
        )  # fmt: skip

    @property
    def num_steps(self) -> int:
        """Euler steps of an answer; 0 for discrete answers."""
        flow = self.model.config.flow
        if self.options.mode == "discrete" or flow is None:
            return 0
        return self.options.num_steps or flow.num_steps

    def reset(self, seed: int | None = None) -> None:
        """A new episode: depth is forgotten, and the noise starts from `seed` (None = from the system)."""
        self.episode = Episode()
        self.memory.forget()
        if seed is None:
            self.episode.generator.seed()
        else:
            self.episode.generator.manual_seed(seed)

    def act(
        self, observation: Observation, *, trace: Sequence[Sequence[int]] | None = None
    ) -> ActionChunk:
        """The next chunk in the robot's units. See `Policy.act` for what is raised."""
        if trace is not None:
            raise UserError(
                "MolmoAct2 cannot be steered by a trace: it was never trained to follow one."
            )
        if self.episode.name != observation.episode:
            self.episode.start(observation.episode, self.memory)
        clock = _Clock()
        prompt = self._prompt(observation)
        clock.lap("prepare")
        decoding = Decoding(self.model, [prompt])
        depth, pending = self._think(decoding, next(iter(observation.images.values())))
        clock.lap("depth" if depth is not None else "prefill")
        normalised, tokens = self._answer(decoding, pending)
        clock.lap("action")
        actions = self._in_robot_units(normalised)
        codes = None if depth is None else depth.codes_G
        num_codes = 0 if depth is None else depth.num_updated
        return ActionChunk(
            actions_HD=actions,
            depth_codes=codes,
            text=self.processor.decode(tokens),
            seconds=clock.seconds,
            num_tokens=num_codes + len(tokens),
        )

    def _prompt(self, observation: Observation) -> Prompt:
        self._check_observation(observation)
        state = observation.state
        if state is not None and self.tag.state is not None and not self.episode.warned:
            beyond = self.tag.state.outside(state)
            if beyond:
                self.episode.warned = True
                logger.warning(
                    "the state is outside what was seen in training: %s", ", ".join(beyond)
                )
        return self.processor.prompt(
            "robot_depth_action" if self.options.think else "robot_action",
            observation.instruction,
            self.tag,
            list(observation.images.values()),
            state if self.tag.state is not None else None,
        )

    def _check_observation(self, observation: Observation) -> None:
        if not observation.instruction.strip():
            raise UserError("the instruction is empty; say what the robot is to do.")
        wanted, count = len(self.tag.camera_keys), len(observation.images)
        if count < 1 or (wanted and count != wanted):
            keys = ", ".join(self.tag.camera_keys) or "at least one"
            raise UserError(
                f"tag {self.tag.name!r} was trained on {wanted or 'one or more'} cameras ({keys}), the observation has "
                f"{count} ({', '.join(observation.images) or 'none'})."
            )
        for role, rgb in observation.images.items():
            if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
                raise UserError(
                    f"camera {role!r}: an image is RGB uint8 [height, width, 3], got {rgb.dtype} {rgb.shape}."
                )
        if self.tag.state is None:
            return
        if observation.state is None:
            raise UserError(
                f"tag {self.tag.name!r} reads the robot's state ({self.tag.state.dim} numbers), and the observation "
                "has none."
            )
        if not np.isfinite(observation.state).all():
            raise UserError("the robot's state holds NaN or infinity: no action is asked for.")

    def _think(
        self, decoding: Decoding, main_rgb: NDArray[np.uint8]
    ) -> tuple[think.DepthAnswer | None, list[int]]:
        """The depth answer, remembered for the next call, and the tokens that are still to be fed."""
        config, options = self.model.config, self.options
        if not options.think:
            return None, []
        assert config.depth_tokens is not None, "checked in the constructor"
        if not options.adaptive:
            self.memory.forget()
        updates = self.memory.look(main_rgb)
        kept = self.memory.codes_G
        answers, pending = think.write_depth(
            decoding, config.depth_tokens, updates[None], kept[None],
            last_fed=options.mode == "continuous",
        )  # fmt: skip
        self.memory.remember(answers[0].codes_G)
        self.updated_cells += answers[0].num_updated
        self.asked_cells += len(updates)
        return answers[0], pending[0]

    def _answer(
        self, decoding: Decoding, pending: list[int]
    ) -> tuple[NDArray[np.float64], list[int]]:
        """Normalised actions [H, D], and the tokens that were written."""
        if self.options.mode == "continuous":
            return self._flow(decoding), []
        return self._discrete(decoding, pending)

    def _flow(self, decoding: Decoding) -> NDArray[np.float64]:
        config, dim = self.model.config, self.tag.action.dim
        if decoding.forward_passes == 0:
            decoding.feed([[]])
        shape = (1, self.tag.action_horizon, config.max_action_dim)
        noise = torch.randn(shape, generator=self.episode.generator).to(decoding.device)
        actions = solve(self.model, decoding, noise, dim, self.num_steps)
        return actions[0, :, :dim].double().cpu().numpy()

    def _discrete(
        self, decoding: Decoding, pending: list[int]
    ) -> tuple[NDArray[np.float64], list[int]]:
        config, tag = self.model.config, self.tag
        actions = config.action_tokens
        assert actions is not None, "checked in the constructor"
        assert self.fast is not None, "checked in the constructor"
        size = (tag.action_horizon, tag.action.dim)
        if self.options.constrained:
            ids = write_actions(
                decoding, self._grammar, [pending],
                start=actions.start, first=actions.first, num_symbols=size[0] * size[1],
            )[0]  # fmt: skip
            written = [actions.start, *(actions.first + i for i in ids), actions.end]
        else:
            most = FREE_TOKENS_PER_STEP * tag.action_horizon
            written = write_freely(decoding, pending, eos_id=config.eos_id, max_tokens=most)
            ids = read_answer(
                written,
                start=actions.start,
                end=actions.end,
                first=actions.first,
                count=actions.count,
            )
        try:
            return self.fast.decode(ids, *size), written
        except Undecodable as error:
            text = self.processor.decode(written)
            raise PredictionFailed("undecodable", str(error), text=text) from error

    def _in_robot_units(self, normalised_HD: NDArray[np.float64]) -> NDArray[np.float32]:
        if not np.isfinite(normalised_HD).all():
            raise PredictionFailed("not_finite", "the model's actions hold NaN or infinity")
        actions = self.tag.action.unnormalise(normalised_HD, self.processor.stats.mode)
        if self.options.whole_chunk:
            return actions
        first = self.model.config.n_obs_steps - 1
        return actions[first : first + self.tag.n_action_steps]

    def _max_cameras(self) -> int:
        return len(self.tag.camera_keys) or 3


@torch.inference_mode()
def solve(
    model: MolmoAct2, decoding: Decoding, noise_BTA: Tensor, action_dim: int, num_steps: int
) -> Tensor:
    """Actions [B, T, A] from noise, given what has been fed; padded dimensions stay 0."""
    dims = None
    if model.config.mask_action_dim_padding:
        dims = torch.arange(noise_BTA.shape[2], device=noise_BTA.device) < action_dim
        dims = dims.expand(len(noise_BTA), -1)
    return euler(model.expert, decoding.expert_context(), noise_BTA, num_steps, dims)


def _check(model: MolmoAct2, tag: Tag, options: ActOptions, fast: FastTokenizer | None) -> None:
    """What a checkpoint cannot do is said before the first observation."""
    config = model.config
    rules = [
        (
            options.mode == "continuous" and config.expert is None,
            "continuous actions need an action expert, and this checkpoint has none: use mode discrete",
        ),
        (
            options.mode == "continuous" and config.action_mode == "discrete",
            "this checkpoint was trained on action tokens only (action_mode discrete)",
        ),
        (
            options.mode == "discrete" and config.action_mode == "continuous",
            "this checkpoint was trained without action tokens (action_mode continuous)",
        ),
        (
            options.mode == "discrete" and (fast is None or config.action_tokens is None),
            "discrete answers need the action tokenizer and action tokens in the vocabulary",
        ),
        (
            options.think and not (config.enable_depth_reasoning and config.depth_tokens),
            "Think was asked of a checkpoint that was not trained with depth (enable_depth_reasoning)",
        ),
        (
            tag.action_horizon > config.max_action_horizon,
            f"tag {tag.name!r} acts {tag.action_horizon} steps ahead, the expert at most {config.max_action_horizon}",
        ),
        (
            tag.action.dim > config.max_action_dim,
            f"tag {tag.name!r} has {tag.action.dim} action dimensions, the expert at most {config.max_action_dim}",
        ),
        (
            not 1 <= tag.n_action_steps <= tag.action_horizon,
            f"tag {tag.name!r} executes {tag.n_action_steps} of {tag.action_horizon} steps",
        ),
        (options.num_steps is not None and options.num_steps < 1, "num_steps must be at least 1"),
    ]
    for broken, text in rules:
        if broken:
            raise UserError(f"{text}.")


@dataclass
class _Clock:
    """Wall time by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.perf_counter)

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self.since
        self.since = now
