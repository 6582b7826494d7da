"""The two ways things go wrong here, and the closed list of reasons an episode is rejected.

`UserError` is the user's to mend: the command line prints its one message and exits with 2.
`EpisodeRejected` belongs to one episode: it is counted, written to `rejects.jsonl`, and the run goes on.
Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import enum
import errno
import os
import re
from collections.abc import Iterable


class UserError(ValueError):
    """Input, flags or environment are wrong. The message says what, why it matters and what to do."""


class RejectReason(enum.StrEnum):
    """Why a whole episode is not in the output. The value is what `rejects.jsonl` and reports spell."""

    ROWS_MISSING = "rows_missing"
    ROWS_UNREADABLE = "rows_unreadable"
    ROWS_EMPTY = "rows_empty"
    ROWS_OUT_OF_ORDER = "rows_out_of_order"
    CLOCK_NOT_SECONDS = "clock_not_seconds"
    LENGTHS_DISAGREE = "lengths_disagree"
    COLUMN_MISSING = "column_missing"
    VIDEO_MISSING = "video_missing"
    VIDEO_EMPTY = "video_empty"
    VIDEO_GIT_LFS_POINTER = "video_git_lfs_pointer"
    VIDEO_UNDECODABLE = "video_undecodable"
    VIDEO_SHORTER_THAN_ROWS = "video_shorter_than_rows"
    VIDEO_LONGER_THAN_ROWS = "video_longer_than_rows"
    VIDEO_SIZE_CHANGED = "video_size_changed"
    VIDEO_STREAMS_AMBIGUOUS = "video_streams_ambiguous"
    VIDEO_SPAN_CONTRADICTED = "video_span_contradicted"
    FRAME_TIMESTAMP_MISMATCH = "frame_timestamp_mismatch"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    PICTURE_SIZE_DIFFERS = "picture_size_differs"
    PATH_OUTSIDE_DATASET = "path_outside_dataset"
    INSTRUCTION_MISSING = "instruction_missing"
    INSTRUCTION_AMBIGUOUS = "instruction_ambiguous"
    INSTRUCTION_HAS_TOKENS = "instruction_has_tokens"
    ACTION_NON_FINITE = "action_non_finite"
    ACTION_DIMENSION_DIFFERS = "action_dimension_differs"
    STATE_NON_FINITE = "state_non_finite"
    STATE_DIMENSION_DIFFERS = "state_dimension_differs"
    NUMBER_ROUNDED = "number_rounded"
    DEPTH_NON_FINITE = "depth_non_finite"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    DECODER_CRASHED = "decoder_crashed"


class EpisodeRejected(Exception):
    """One episode cannot become records; `detail` names the file, the row or the value."""

    def __init__(self, reason: RejectReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason.value}: {self.detail}"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a misspelt `kind`: names the nearest match and lists what exists."""
    choices = sorted(known)
    nearest = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(choices) or 'none'}.")


class LimitExceeded(Exception):
    """The work is done and written, but what it found is above a limit the user set: exit code 3."""


def first_line(error: Exception) -> str:
    """What an exception says, as one sentence."""
    lines = str(error).strip().splitlines()
    return f"{(lines[0] if lines else type(error).__name__).rstrip('.')}."


# What the operating system refuses is the user's to mend, wherever it comes up.
_REFUSALS = {
    errno.ENOSPC: "Free some space.",
    errno.EDQUOT: "Free some space, or ask for a larger quota.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.EACCES: "Choose a folder that you may write, or change its permissions.",
    errno.EPERM: "Choose a folder that you may write, or change its permissions.",
    errno.ENAMETOOLONG: "Choose a shorter path.",
    errno.ENOTDIR: "Choose another path.",
    errno.EISDIR: "Choose another path.",
    errno.EEXIST: "Choose another path.",
    errno.ELOOP: "Choose another path.",
    errno.EFBIG: "Choose another file system.",
    errno.EIO: "The disk or its connection may be broken.",
}
_WORDS = {errno.ENOTDIR: "a part of this path is a file", errno.EEXIST: "this is a file"}
_NO_TEMPORARY = "No usable temporary directory"
"""How Python's tempfile says it; the file that is not found is none of the user's."""
_OTHER_TEMPORARY = "TMPDIR=FOLDER in the environment names another one."
_NUMBER_IN_TEXT = re.compile(r"\((?:os error|errno) (\d+)\)|\berrno (\d+)\b", re.IGNORECASE)


def refused_by_system(error: BaseException) -> str | None:
    """What the operating system refused and what to do, in one or two sentences; None where it did not.

    Libraries of other languages (safetensors, Arrow) pass its number on in their text only.
    """
    if isinstance(error, FileNotFoundError) and _NO_TEMPORARY in str(error):
        return f"{error.strerror}: all are missing, full or read-only. {_OTHER_TEMPORARY}"
    number = getattr(error, "errno", None) if isinstance(error, OSError) else None
    if number is None and (found := _NUMBER_IN_TEXT.search(str(error))):
        number = int(found[1] or found[2])
    if number not in _REFUSALS:
        return None
    filename = getattr(error, "filename2", None) or getattr(error, "filename", None)
    where = f"{_shortened(str(filename))}: " if filename else ""
    said = _WORDS.get(number) or os.strerror(number).lower()
    nameless = not filename and number in (errno.ENOSPC, errno.EDQUOT)  # as temporary files are
    hint = f" If it is the temporary folder: {_OTHER_TEMPORARY}" if nameless else ""
    return f"{where}{said}. {_REFUSALS[number]}{hint}"


def _shortened(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:100]}...{path[-60:]}"
