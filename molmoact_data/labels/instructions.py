"""What an instruction may be: words for the robot, not a missing value and not the model's own marks."""

from __future__ import annotations

import re

from molmoact_data.errors import UserError

NO_TEXT = ("nan", "none", "null", "nil", "n/a", "na", "<na>", "undefined", "true", "false")
"""What a missing value, or a truth value, became on its way through other programs."""
_MARK = re.compile(r"<\|[^\s<>|]{1,64}\|>|<(?=[^\W_]*_)\w{1,64}>")
"""As tokenizers spell their special tokens: `<|im_end|>`, `<im_patch>`, `<DEPTH_3>`, `|<EXTRA_TOKENS_7>|`."""


def usable_text(value: object) -> str | None:
    """The value where it is an instruction; None for a number, NaN, true, and text without a letter."""
    if not isinstance(value, str) or value.strip().lower() in NO_TEXT:
        return None
    return value if any(letter.isalpha() for letter in value) else None


def special_mark(text: str) -> str | None:
    """The first spelling of a special token in a person's text; None for plain text.

    A tokenizer would read it as the token itself: the end of a turn, a patch of a picture, a depth code.
    """
    found = _MARK.search(text)
    return found[0] if found else None


def plain_instruction(text: str) -> str:
    """The instruction, which holds no special token. Raises `UserError`."""
    if (mark := special_mark(text)) is not None:
        raise UserError(
            f"the instruction {text[:80]!r} holds {mark!r}, which the model reads as a special token; leave it out"
        )
    return text
