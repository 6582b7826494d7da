"""The tokenizer of a checkpoint, and the tokens that MolmoAct adds to a base vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import AddedToken

from molmoact_data.errors import UserError, first_line
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.text import tokens

EMBEDDING_MULTIPLE = 512
"""The base models' embedding tables are padded to this; the released vocabulary grew in the same steps."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's own tokenizer, never one from the network, never remote code."""
    if not list(folder.glob("tokenizer*.json")) and not (folder / "vocab.json").is_file():
        raise UserError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt)"
        )
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        if (folder / name).is_file() and is_git_lfs_pointer(folder / name):
            raise UserError(
                f"{folder / name} is a Git LFS pointer; run `git lfs pull` in that folder."
            )
    if (folder / "tokenizer.json").is_file():
        # As the file says: the class that tokenizer_config.json names would bring its own splitting rules.
        try:
            found = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:
            # The tokenizers library raises plain Exception for a file that it cannot read.
            raise UserError(
                f"{folder} holds a damaged tokenizer ({first_line(error)}); download or export it again."
            ) from error
        if not isinstance(found.model_max_length, int | float):
            raise UserError(
                f"{folder}/tokenizer_config.json: model_max_length is {found.model_max_length!r}, not a number."
            )
        return found
    _refuse_code(folder)
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def _refuse_code(folder: Path) -> None:
    """transformers asks at the terminal whether to run code that a configuration names: it never comes to that."""
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "AutoTokenizer" in fields.get("auto_map", {}):
        raise UserError(
            f"{path} names Python code of its own for the tokenizer, which is never run; add a tokenizer.json."
        )
    if "tokenizer_class" not in fields:
        raise UserError(
            f"{folder} holds vocab.json but no tokenizer_config.json that names its tokenizer_class; add it, or a "
            "tokenizer.json."
        )


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer so that transformers 4, and with it the released code and vLLM, reads it too.

    Transformers 5 names a class that 4 does not know, and writes a list where 4 wants a mapping.
    """
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := fields.get("extra_special_tokens"), list):
        del fields["extra_special_tokens"]
        fields["additional_special_tokens"] = extra
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def extend_vocabulary(tokenizer: PreTrainedTokenizerBase, embedding_size: int | None = None) -> int:
    """Add depth tokens, fillers and image tokens in the released order; returns the embedding size.

    Depth tokens follow the base vocabulary and are ordinary; the image tokens sit at embedding_size + 0..5.
    A tokenizer that has them is only checked.
    """
    depth = [tokens.DEPTH_START, tokens.DEPTH_END, *tokens.depth_tokens()]
    tokenizer.add_tokens([AddedToken(t, special=False) for t in depth])
    if embedding_size is None:
        extended = tokens.IM_START in tokenizer.get_vocab()
        embedding_size = (
            id_of(tokenizer, tokens.IM_START)
            if extended
            else -(-len(tokenizer) // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE
        )
    missing = embedding_size - len(tokenizer)
    fillers = [tokens.filler_token(i) for i in range(max(0, missing))]
    special = [
        AddedToken(t, special=True, normalized=False) for t in [*fillers, *tokens.image_tokens()]
    ]
    tokenizer.add_tokens(special, special_tokens=True)
    found = [id_of(tokenizer, t) for t in tokens.image_tokens()]
    if found != list(range(embedding_size, embedding_size + len(found))):
        raise UserError(
            f"image tokens have the ids {found}, expected {embedding_size}..{embedding_size + 5}: the vocabulary "
            f"of {len(tokenizer)} does not fit an embedding of {embedding_size} rows"
        )
    return embedding_size


def id_of(tokenizer: PreTrainedTokenizerBase, token: str | None) -> int:
    """The id of a token that a MolmoAct tokenizer must have; None = one that it does not even name."""
    if token is None:
        raise UserError(
            "the tokenizer names no end of text (eos_token): it is not a MolmoAct tokenizer"
        )
    found = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(found, int) or found == tokenizer.unk_token_id:
        raise UserError(f"the tokenizer has no {token!r}: it is not a MolmoAct tokenizer")
    return found
