"""Weights that teachers fetch from the Hub: what, from where, how big, under which licence. Said before anything is
downloaded, and the one place where a repository or a commit is named.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from molmoact_data.errors import UserError
from molmoact_data.files.hub import hub_errors

logger = logging.getLogger(__name__)

APACHE, NON_COMMERCIAL = "Apache-2.0", "CC-BY-NC-4.0"
TONGYI = "Tongyi Qianwen License Agreement (that of Qwen2-72B; not Apache-2.0)"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt")


@dataclass(frozen=True)
class Published:
    """One download."""

    repository: str
    """Hub id."""
    revision: str
    """The commit that is fetched; a branch name where no commit has been checked yet."""
    licence: str
    num_bytes: int
    """About this much is fetched."""
    files: tuple[str, ...] = _MODEL_FILES
    """Patterns of the files that are needed; a repository's Python files never are."""

    @property
    def size(self) -> str:
        """For people: `32 GB`, `99 MB`."""
        if not self.num_bytes:
            return "size not known"
        if self.num_bytes < 10**9:
            return f"{self.num_bytes / 10**6:.0f} MB"
        return f"{self.num_bytes / 10**9:.3g} GB"

    def describe(self) -> str:
        """One line for people."""
        return f"{self.repository} at {self.revision}, about {self.size}, licence {self.licence}"

    def command(self) -> str:
        """What fetches the same files by hand, for a machine without network."""
        patterns = " ".join(f"--include '{pattern}'" for pattern in self.files)
        return f"hf download {self.repository} --revision {self.revision} {patterns} --local-dir FOLDER"


MOLMO_7B_D = Published(
    "allenai/Molmo-7B-D-0924", "ac032b93b84a7f10c9578ec59f9f20ee9a8990a2", APACHE, 32_084_101_120
)
MOLMO_7B_O = Published("allenai/Molmo-7B-O-0924", "main", APACHE, 30_660_000_000)
MOLMO_72B = Published("allenai/Molmo-72B-0924", "main", TONGYI, 293_230_000_000)
# The last two sizes follow from the layout (fp32); their commits have not been checked, so the one that is fetched is
# written into the manifest.
POINTING_WEIGHTS = {one.repository: one for one in (MOLMO_7B_D, MOLMO_7B_O, MOLMO_72B)}

MOLMO2_4B = Published("allenai/Molmo2-4B", "main", APACHE, 0)
MOLMO2_WEIGHTS = {
    one.repository: one
    for one in (
        MOLMO2_4B,
        Published("allenai/Molmo2-8B", "main", APACHE, 0),
        Published("allenai/Molmo2-VideoPoint-4B", "main", APACHE, 0),
    )
}
_DEPTH_FILES = ("config.json", "model.safetensors")
DEPTH_WEIGHTS = {
    "vits": Published(
        "depth-anything/Depth-Anything-V2-Small-hf", "main", APACHE, 99_000_000, _DEPTH_FILES
    ),
    "vitb": Published(
        "depth-anything/Depth-Anything-V2-Base-hf",
        "main",
        NON_COMMERCIAL,
        390_000_000,
        _DEPTH_FILES,
    ),
    "vitl": Published(
        "depth-anything/Depth-Anything-V2-Large-hf",
        "main",
        NON_COMMERCIAL,
        1_341_000_000,
        _DEPTH_FILES,
    ),
}
RELEASED_VQVAE = Published(
    "allenai/MolmoAct-7B-D-0812", "main", APACHE, 31_300_000, ("vae-final.pt",)
)
"""The codebook of the published models; the repository's other 32 GB are left alone."""


def is_hub_id(name: str) -> bool:
    """`owner/name`, and nothing that can only be a path."""
    return HUB_ID.fullmatch(name) is not None


def fetch(published: Published) -> Path:
    """The local folder of the download, from the cache where it is there. Says what it fetches; raises `UserError`."""
    from huggingface_hub import constants, snapshot_download

    logger.info(
        "%s at %s: about %s, licence %s; fetched once, then taken from the cache",
        published.repository,
        published.revision,
        published.size,
        published.licence,
    )
    then = (
        f"On a machine with network run `{published.command()}` (about {published.size}, licence "
        f"{published.licence}) and give the folder instead of the id."
    )
    with hub_errors(f"cannot fetch {published.repository}", then):
        try:
            return Path(
                snapshot_download(
                    published.repository,
                    revision=published.revision,
                    allow_patterns=list(published.files),
                    # A commit in the cache needs no network; asked for plainly, the client would want to list it.
                    local_files_only=constants.HF_HUB_OFFLINE,
                )
            )
        except OSError as error:
            raise UserError(f"cannot fetch {published.repository}: {error}. {then}") from error
