"""Object stores through fsspec: one way to open them, and what they raise as one line for the user."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from molmoact_data.errors import UserError, first_line

EXTRAS = {"s3": "s3", "s3a": "s3"}
"""The extra of this package that installs a driver."""

# What the drivers raise when a store cannot be reached or says no, beside OSError.
_DRIVER_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
    ("aiohttp", "ClientError"),
)
_ADVICE = (
    "Check credentials and endpoint (for S3: AWS_PROFILE or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."
)


def open_filesystem(url: str) -> tuple[Any, str]:
    """(fsspec's file system, the path in it). fsspec keeps one instance per process and settings."""
    protocol = url.partition("://")[0]
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        install = f"`pip install 'molmoact[{extra}]'`." if extra else first_line(error)
        raise UserError(f"{url} needs a driver that is not installed: {install}") from error
    except ValueError as error:
        known = "Known to fsspec are s3://, gs://, az:// and more."
        raise UserError(f"{url}: {first_line(error)} {known}") from error


@contextmanager
def store_errors(url: str, then: str = "") -> Iterator[None]:
    """Raise `UserError` for what the driver raises, except `FileNotFoundError`; `then` ends the message."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(_sentences(f"{url}: {first_line(error)}", _ADVICE, then)) from error
    except _driver_error_types() as error:
        raise UserError(_sentences(f"{url}: {first_line(error)}", _ADVICE, then)) from error


@contextmanager
def must_exist(url: str, then: str = "") -> Iterator[None]:
    """Raise `UserError` where something that has to be there is not."""
    try:
        yield
    except FileNotFoundError as error:
        advice = "Check the bucket and the path."
        raise UserError(_sentences(f"{url}: {first_line(error)}", advice, then)) from error


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _driver_error_types() -> tuple[type[Exception], ...]:
    """Of the drivers that are loaded: nothing else can have raised."""
    loaded = ((sys.modules.get(module), name) for module, name in _DRIVER_ERRORS)
    return tuple(getattr(module, name) for module, name in loaded if module is not None)
