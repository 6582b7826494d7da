"""`molmoact publish`: an output folder to the Hub, with a card; interrupted uploads go on where they were.

huggingface_hub does the transfer: it asks what the Hub has already and sends the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from molmoact_data import schema
from molmoact_data.errors import UserError, first_line
from molmoact_data.files.folders import TEMPORARY_MARK
from molmoact_data.files.hub import hub_errors
from molmoact_data.outputs.output import Output
from molmoact_data.publishing import card
from molmoact_data.teachers.knowledge import warn_of_strange_labels

CARD_FILE, PICTURE_FILE = "README.md", "example.jpg"
NOT_PUBLISHED = ("_state", ".cache", ".git", schema.DEMO_RUN_DIR, schema.DEMO_ANSWER_DIR)
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_THEN = (
    "Log in with `hf auth login` as somebody who may write there, then run the same command again; what was "
    "sent is not sent twice."
)


@dataclass(frozen=True)
class PublishPlan:
    """What would go, or went."""

    repo_id: str
    private: bool
    files: tuple[tuple[str, int], ...]
    """(path, bytes), sorted; the card and the picture included."""
    card: str
    """The text of the card."""
    non_commercial: tuple[str, ...]
    """Teachers whose licence forbids commercial use of the labels."""

    @property
    def num_bytes(self) -> int:
        """Size of all files together."""
        return sum(size for _, size in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the card's text."""
        return {
            "repo_id": self.repo_id,
            "private": self.private,
            "files": [{"path": path, "bytes": size} for path, size in self.files],
            "bytes": self.num_bytes,
            "non_commercial": list(self.non_commercial),
        }


def plan_publish(root: Path, repo_id: str, *, private: bool) -> PublishPlan:
    """Look at the folder; nothing is written and nothing is asked of the Hub."""
    if not REPO_ID.fullmatch(repo_id):
        raise UserError(
            f"--repo-id wants USER/NAME, for example lab/kitchen-molmoact; got {repo_id!r}."
        )
    output = Output.open(root)
    if output.storage.is_remote:
        raise UserError(f"{root} is not a local folder; copy it here first.")
    warn_of_strange_labels(output.manifest)
    picture = card.example_picture(output)
    text = _card_text(root, output, has_picture=picture is not None)
    sizes = {path: (root / path).stat().st_size for path in _files(root)}
    sizes[CARD_FILE] = len(text.encode())
    if picture is not None:
        sizes[PICTURE_FILE] = len(picture)
    return PublishPlan(
        repo_id=repo_id,
        private=private,
        files=tuple(sorted(sizes.items())),
        card=text,
        non_commercial=tuple(card.non_commercial(output.manifest.teachers)),
    )


def _card_text(root: Path, output: Output, *, has_picture: bool) -> str:
    """A card that somebody wrote by hand stays as it is."""
    existing = root / CARD_FILE
    if existing.exists():
        text = existing.read_text()
        if card.CARD_MARK not in text:
            return text
    return card.write_card(output, picture=PICTURE_FILE if has_picture else None)


def _files(root: Path) -> list[str]:
    paths = (path for path in root.rglob("*") if path.is_file())
    names = (path.relative_to(root) for path in paths)
    return [
        name.as_posix()
        for name in names
        if name.parts[0] not in NOT_PUBLISHED and TEMPORARY_MARK not in name.name
    ]


def publish(
    root: Path, plan: PublishPlan, *, endpoint: str | None = None, token: str | None = None
) -> str:
    """Upload what the plan lists; returns the address of the dataset. Run it again after any interruption."""
    from huggingface_hub import HfApi

    output = Output.open(root)
    (root / CARD_FILE).write_text(plan.card)
    picture = card.example_picture(output)
    if picture is not None:
        (root / PICTURE_FILE).write_bytes(picture)
    api = HfApi(endpoint=endpoint, token=token)
    with hub_errors(f"{plan.repo_id} is not published", _THEN):
        url = api.create_repo(
            plan.repo_id, repo_type="dataset", private=plan.private, exist_ok=True
        )
        try:
            api.upload_folder(
                repo_id=plan.repo_id,
                repo_type="dataset",
                folder_path=root,
                allow_patterns=[path for path, _ in plan.files],
                commit_message="molmoact publish",
            )
        except RuntimeError as error:  # how the client tells of a transfer that broke off
            raise UserError(
                f"{plan.repo_id} is not published: {first_line(error)} {_THEN}"
            ) from error
    return str(url)
