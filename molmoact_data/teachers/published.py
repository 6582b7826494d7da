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
BRANCH = "main"
"""Followed where no commit is known; which one was fetched (of the codebook, its hash) is written into the manifest."""
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt")


@dataclass(frozen=True)
class Published:
    """One download."""

    repository: str
    """Hub id."""
    revision: str
    """The commit that is fetched; `BRANCH` where none is known."""
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
MOLMO_7B_O = Published(
    "allenai/Molmo-7B-O-0924", "7a8c4bf80c839c243a6908c6ebbb0f1ee576d7ca", APACHE, 30_660_000_000
)
MOLMO_72B = Published(
    "allenai/Molmo-72B-0924", "2ca845922396b7a5f7086bfda3fca6b8ecd1c8f3", TONGYI, 293_230_000_000
)
# The last two sizes follow from the layout (fp32).
POINTING_WEIGHTS = {one.repository: one for one in (MOLMO_7B_D, MOLMO_7B_O, MOLMO_72B)}

MOLMO2_4B = Published("allenai/Molmo2-4B", "042abfa7a38879a376cec03d949eff0aefaa0600", APACHE, 0)
MOLMO2_WEIGHTS = {
    one.repository: one
    for one in (
        MOLMO2_4B,
        Published("allenai/Molmo2-8B", "e28fa28597e5ec5e0cca2201dd8ab33d48bc4a1b", APACHE, 0),
        Published("allenai/Molmo2-VideoPoint-4B", BRANCH, APACHE, 0),
    )
}
_DEPTH_FILES = ("config.json", "model.safetensors")
DEPTH_WEIGHTS = {
    "vits": Published(
        "depth-anything/Depth-Anything-V2-Small-hf", "5426e4f0f36572d16453bbda7a8389317b1bef99",
        APACHE, 99_000_000, _DEPTH_FILES,
    ),
    "vitb": Published(
        "depth-anything/Depth-Anything-V2-Base-hf", "b1958afc87fb45a9e3746cb387596094de553ed8",
        NON_COMMERCIAL, 390_000_000, _DEPTH_FILES,
    ),
    "vitl": Published(
        "depth-anything/Depth-Anything-V2-Large-hf", "7581137eff8d4e94f6e796d3baea0e9fa79b22d2",
        NON_COMMERCIAL, 1_341_000_000, _DEPTH_FILES,
    ),
}  # fmt: skip
RELEASED_VQVAE = Published(
    "allenai/MolmoAct-7B-D-0812", BRANCH, APACHE, 31_300_000, ("vae-final.pt",)
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
