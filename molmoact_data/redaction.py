"""Secrets are no configuration: what is written down or said goes through `redact` first.

A URL keeps host and path and loses its user, its password and the values of its query. Keys of the usual services
are known by their shape, and whatever a variable such as HF_TOKEN holds by its value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
SHORTEST_SECRET = 6
"""Shorter values of environment variables are words such as `true`."""

_URL = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+")
_USER = re.compile(r"(?<=://)[^/?#]*(?=@)")
_VALUE = re.compile(r"(?<==)[^&;#)\]},]+")
_SECRET_NAME = (
    r"(?:[\w-]*(?:password|passwd|secret|api[_-]?key|access[_-]?key|account[_-]?key|credential"
    r"|(?:access|auth|bearer|hf|hub|session|sas)[_-]?token)|pwd)[\w-]*"
)
_NAMED = re.compile(
    rf"((?:--)?{_SECRET_NAME}\s*[=:]\s*|--{_SECRET_NAME}\s+|\btoken=)[^\s&;,)\"']+", re.I
)
_BEARER = re.compile(r"(?<=\bbearer )[\w.~+/=-]{6,}", re.I)
_SHAPE = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    r"|xox[abprs]-[\w-]{10,})"
)
_SECRET_KEY = re.compile(rf"{_SECRET_NAME}|token", re.I)
_SECRET_VARIABLE = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW|API_?KEY|ACCESS_KEY|CREDENTIAL", re.I)


def redact(text: str) -> str:
    """`text` without what only its owner may know; anything else stays as it is."""
    for value in _secrets_of_environment():
        text = text.replace(value, HIDDEN)
    text = _URL.sub(lambda found: _redact_url(found.group()), text)
    text = _NAMED.sub(rf"\g<1>{HIDDEN}", text)
    return _SHAPE.sub(HIDDEN, _BEARER.sub(HIDDEN, text))


def redacted(value: Any) -> Any:
    """Plain JSON values with every text redacted, and hidden where its key says that it is a secret."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: _redacted_field(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def _redacted_field(key: str, value: Any) -> Any:
    if isinstance(value, str) and value and _SECRET_KEY.fullmatch(key):
        return HIDDEN
    return redacted(value)


def _redact_url(url: str) -> str:
    url = _USER.sub(HIDDEN, url, count=1)
    address, mark, query = url.partition("?")
    if not mark:
        address, mark, query = url.partition("#")  # a fragment names part of a dataset
    if not mark or ("=" not in query and mark == "#"):
        return url
    return address + mark + (_VALUE.sub(HIDDEN, query) if "=" in query else HIDDEN)


def _secrets_of_environment() -> list[str]:
    """Longest first, so that no part of one stays. Paths of files with secrets are none."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name)
        and len(value) >= SHORTEST_SECRET
        and not value.startswith(("/", "~", "."))
    }
    return sorted(found, key=len, reverse=True)
