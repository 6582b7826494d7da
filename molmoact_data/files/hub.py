"""What the Hub or the network says, as one line for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from molmoact_data.errors import UserError, first_line


@contextmanager
def hub_errors(what: str, then: str) -> Iterator[None]:
    """Raise `UserError` for what goes wrong with `what` on the Hub; `then` is what to do about it."""
    from httpx import HTTPError, NetworkError, TimeoutException
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"{what}: HF_HUB_OFFLINE is set, so the Hub is not asked. {then}"
        ) from error
    except (NetworkError, TimeoutException) as error:
        raise UserError(f"{what}: no answer from {error.request.url}. {then}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, HTTPError) as error:
        raise UserError(f"{what}: the Hub refused: {first_line(error)} {then}") from error
