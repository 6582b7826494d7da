"""What a run of MolmoAct2 has beyond any run: modes, rates, Think, robots; and its published stages. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from molmoact_data.errors import UserError

ActionMode = Literal["continuous", "discrete", "both"]
ImageAttention = Literal["bidirectional", "causal"]
FtEmbedding = Literal["all", "lm_head", "ln_f", "wte", "none"]
Style = Literal["robot_action", "robot_depth", "robot_depth_action"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fields of a MolmoAct2 run; flags and YAML keys are spelled alike."""

    action_mode: ActionMode = "continuous"
    """continuous: the flow-matching expert; discrete: action tokens; both: one decoder pass for the two losses."""
    num_flow_timesteps: int = 8
    """Draws of (noise, time) per action chunk; they share one pass of the decoder."""
    knowledge_insulation: bool = False
    """The flow loss gives the vision-language model no gradient."""
    image_attention: ImageAttention = "bidirectional"
    """How image tokens see each other, in training and in inference alike; stored in the checkpoint."""
    packing: bool = False
    """Several samples per row, each seeing only itself; nothing is padded but the last row."""

    lr_llm: float = 1e-5
    """Learning rate of the language model."""
    lr_vit: float = 5e-6
    """Learning rate of the image encoder."""
    lr_connector: float = 5e-6
    """Learning rate of pooling, projector and the embeddings of the image tokens."""
    lr_expert: float = 5e-5
    """Learning rate of the action expert and the depth gate."""
    z_loss: float = 1e-4
    """Weight of logsumexp(logits)^2; 0 switches it off."""
    residual_dropout: float = 0.1
    """On the attention and MLP branch of every language-model block."""
    ft_embedding: FtEmbedding = "lm_head"
    """Which of input rows, final norm and head train: all; lm_head: head and norm; ln_f: the norm; wte: the rows."""
    expert_only: bool = False
    """Train the action expert alone; the vision-language model is as in evaluation."""

    style_action: float = 1.0
    """Relative frequency of: the action alone."""
    style_depth: float = 0.0
    """Relative frequency of: the depth map alone."""
    style_depth_action: float = 0.0
    """Relative frequency of: the depth map, then the action."""
    depth_input_noise: float = 0.0
    """Share of the depth codes that the model reads replaced by random ones; what it is to say stays."""

    depth_target: Literal["auto", "depth_codes", "buffer_codes"] = "auto"
    """Which codes are learned: those of every frame, or those that follow only where the picture changed (auto =
    these, where the data have them)."""

    tags: tuple[str, ...] = ()
    """`DATASET=TAG`, repeatable: the robot of a data set by its tag; without one the data set's own name is it."""
    setup_type: str | None = None
    """Words for the robot of a new tag, as in `single franka robotic arm in droid`."""
    control_mode: str | None = None
    """Words for the actions of a new tag, as in `absolute joint pose`."""
    normalize_gripper: bool = False
    """Scale grippers of a new tag like other dimensions; without it they must lie in [-1, 1]."""
    action_tokenizer: str | None = None
    """Folder or Hub id of the action tokenizer, for discrete and both; None = the one in the checkpoint."""

    @property
    def styles(self) -> dict[Style, float]:
        """Relative frequency of each style."""
        return {
            "robot_action": self.style_action,
            "robot_depth": self.style_depth,
            "robot_depth_action": self.style_depth_action,
        }

    @property
    def thinks(self) -> bool:
        """Whether depth is trained."""
        return self.style_depth > 0 or self.style_depth_action > 0

    @property
    def writes_actions(self) -> bool:
        """Whether action tokens are trained."""
        return self.action_mode != "continuous"

    @property
    def has_text_loss(self) -> bool:
        """Whether any token carries loss."""
        return self.writes_actions or self.thinks

    def tag_of(self, dataset: str) -> str:
        """The tag of a data set."""
        for entry in self.tags:
            name, _, tag = entry.rpartition("=")
            if name == dataset:
                return tag
        return dataset

    def problems(self, run: Any) -> list[str]:
        """Every rule that a field of this family is part of; `run` is the `TrainConfig`. Empty = sound."""
        rules = [
            (self.num_flow_timesteps < 1, "num_flow_timesteps must be at least 1"),
            (
                self.expert_only and run.lora,
                "--expert-only freezes the language model, --lora adapts it: choose one",
            ),
            (
                self.expert_only and self.action_mode != "continuous",
                f"--expert-only trains no token, action_mode {self.action_mode} would need to: use continuous",
            ),
            (
                self.expert_only and self.thinks,
                "--expert-only trains no depth token: drop the depth styles",
            ),
            (
                self.knowledge_insulation and self.action_mode == "discrete",
                "knowledge_insulation needs the flow loss, which action_mode discrete has not",
            ),
            (
                self.knowledge_insulation and not self.has_text_loss and not self.expert_only,
                "knowledge_insulation without a text loss leaves the language model without any gradient: "
                "use --action-mode both, or --expert-only",
            ),
            (min(self.styles.values()) < 0, "a style's frequency is negative"),
            (sum(self.styles.values()) == 0, "all styles have frequency 0, so nothing is trained"),
            (not 0 <= self.depth_input_noise < 1, "depth_input_noise must be in [0, 1)"),
            (not 0 <= self.residual_dropout < 1, "residual_dropout must be in [0, 1)"),
            (any("=" not in entry for entry in self.tags), "tags are DATASET=TAG"),
        ]
        return [text for broken, text in rules if broken]

    @staticmethod
    def before_layer(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
        """Nothing of a stage becomes meaningless by what comes over it."""

    @staticmethod
    def complete(values: dict[str, Any]) -> None:
        """LoRA has one published rate for everything that it trains."""
        if isinstance(values.get("tags"), list):
            values["tags"] = tuple(values["tags"])
        if values.get("action_mode") not in (None, *get_args(ActionMode)):
            raise UserError(
                f"action_mode is {values['action_mode']!r}: {', '.join(get_args(ActionMode))}."
            )


# The published settings (MolmoAct2, 2026): steps, batch, sequence length, flow draws, augmentation.
_FINETUNE: dict[str, Any] = {
    "duration": 50_000,
    "global_batch_size": 64,
    "seq_len": 2100,
    "num_flow_timesteps": 8,
    "img_aug": True,
    "max_images": 3,
    "save_interval": 5_000,
    "keep": 3,
}
STAGES: Mapping[str, Mapping[str, Any]] = {
    # Tiny model, a handful of steps, CPU: exercises every part of a run. With --duration 600 and --max-samples 2 it
    # learns two chunks by heart.
    "debug": {
        "duration": 6,
        "global_batch_size": 2,
        "device_batch_size": 2,
        "action_mode": "both",
        "lr_llm": 1e-3,
        "lr_vit": 1e-3,
        "lr_connector": 1e-3,
        "lr_expert": 1e-3,
        "lr_scheduler": "constant",
        "residual_dropout": 0.0,
        "ft_embedding": "all",
        "setup_type": "single simulated robotic arm",
        "control_mode": "delta end-effector pose",
        "max_images": 2,
        "save_interval": 3,
        "keep": 2,
        "log_interval": 1,
        "eval_interval": 3,
        "eval_samples": 4,
        "eval_generate": 1,
        "num_workers": 0,
        "activation_checkpointing": False,
    },
    "posttrain": {
        "duration": 100_000,
        "global_batch_size": 128,
        "device_batch_size": 2,
        "seq_len": 2100,
        "action_mode": "both",
        "num_flow_timesteps": 4,
        "packing": True,
        "img_aug": True,
        "max_images": 3,
        "save_interval": 10_000,
        "keep": 3,
    },
    "finetune": _FINETUNE,
    "finetune-expert": {**_FINETUNE, "expert_only": True},
    "finetune-lora": {
        **_FINETUNE,
        "lora": True,
        "lora_rank": 64,
        "lora_alpha": 16.0,
        "lora_dropout": 0.05,
        "lr_llm": 5e-5,
        "lr_vit": 5e-5,
        "lr_connector": 5e-5,
    },
    "libero": {**_FINETUNE, "max_images": 2},
    "droid": {**_FINETUNE, "device_batch_size": 2, "max_images": 3},
    "so100": {**_FINETUNE, "max_images": 2, "normalize_gripper": True},
    "yam": {**_FINETUNE, "max_images": 3},
}
