"""The tokens that MolmoAct2 adds to Qwen3's vocabulary, and the tokenizer of a checkpoint.

Ids are found by name and compared with config.json; none is written down here.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from molmoact_data.errors import UserError
from molmoact_train.families.fields import read_tokenizer
from molmoact_train.families.molmoact2 import prompts
from molmoact_train.families.molmoact2.network.config import MolmoAct2Config, TokenRange

TOKENIZER_FILE = "tokenizer.json"
EMBEDDING_MULTIPLE = 1024
IM_START, IM_END, IM_PATCH, IM_COL = "<im_start>", "<im_end>", "<im_patch>", "<im_col>"
LOW_RES_START = "<low_res_im_start>"
IMAGE_TOKENS = (
    IM_START, IM_END, IM_PATCH, IM_COL, LOW_RES_START, prompts.IMAGE, "<im_low>", "<frame_start>", "<frame_end>",
    "<|video|>", "<|points|>", "<|token_index|>", "<|vit_index|>", "<|vit_loc|>",
)  # fmt: skip
"""Read, never written: they address the second embedding table."""


def robot_tokens(
    num_actions: int = prompts.NUM_ACTIONS, num_depths: int = prompts.NUM_DEPTHS
) -> list[str]:
    """The ordinary added tokens in their released order."""
    return [
        *prompts.SETUP,
        *prompts.CONTROL,
        *prompts.STATE,
        *map(prompts.state_token, range(prompts.NUM_STATES)),
        prompts.ACTION_OUTPUT,
        *prompts.ACTION,
        *map(prompts.action_token, range(num_actions)),
        prompts.DEPTH_OUTPUT,
        *prompts.DEPTH,
        *map(prompts.depth_token, range(num_depths)),
    ]


def extend(
    tokenizer: Tokenizer,
    *,
    num_actions: int = prompts.NUM_ACTIONS,
    multiple: int = EMBEDDING_MULTIPLE,
) -> int:
    """Add all tokens to a Qwen tokenizer in place; returns the embedding size, where the image tokens begin."""
    tokenizer.add_tokens(robot_tokens(num_actions))
    used = tokenizer.get_vocab_size()
    size = -(-used // multiple) * multiple
    fillers = [f"<extra_{number}>" for number in range(size - used)]
    tokenizer.add_special_tokens([*fillers, *IMAGE_TOKENS])
    return size


def load(folder: Path, config: MolmoAct2Config) -> Tokenizer:
    """The folder's own tokenizer, its ids checked against config.json."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {TOKENIZER_FILE}.")
    tokenizer = read_tokenizer(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    expected = {IM_PATCH: config.image_patch_id, IM_END: config.image_end_id}
    expected[prompts.TURN_END] = config.eos_id
    for kind, ids in (
        ("state", config.state_tokens),
        ("action", config.action_tokens),
        ("depth", config.depth_tokens),
    ):
        expected |= {} if ids is None else _names_of(kind, ids)
    for token, wanted in expected.items():
        if tokenizer.token_to_id(token) != wanted:
            raise UserError(
                f"{path} gives {token} the id {tokenizer.token_to_id(token)}, config.json says {wanted}: tokenizer and "
                "checkpoint are not of the same release."
            )
    return tokenizer


def _names_of(kind: str, ids: TokenRange) -> dict[str, int]:
    """First, last and marker tokens of one kind."""
    last = ids.count - 1
    names = {
        f"<{kind}_start>": ids.start, f"<{kind}_end>": ids.end,
        f"<{kind}_0>": ids.first, f"<{kind}_{last}>": ids.first + last,
    }  # fmt: skip
    return names if ids.output is None else names | {f"<{kind}_output>": ids.output}


def id_of(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise UserError(f"the tokenizer has no {token!r}: it is not a MolmoAct2 tokenizer.")
    return int(found)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Plain text -> ids; nothing is added."""
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
