"""The safetensors files of one checkpoint folder, read by tensor name; nothing is read before it is asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from molmoact_data.errors import UserError
from molmoact_data.files.inputs import is_git_lfs_pointer
from molmoact_data.files.kinds import is_part_of_training, why_no_model
from molmoact_data.files.typed import read_typed
from molmoact_data.policies import checkpoint_folder
from molmoact_train.inputs import check_model

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_AGAIN = "Download or export it again."


def resolve_model_folder(checkpoint: str, revision: str | None = None) -> Path:
    """A local folder as it is, the shipped one for `embedded`, or the local copy of a Hub id (downloaded if needed).

    A path that exists always wins; anything that cannot be a Hub id is never looked up on the network.
    """
    check_model(checkpoint, revision)
    if (folder := checkpoint_folder(checkpoint)).is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                checkpoint,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.txt"],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"--checkpoint {checkpoint}: no such folder here, and the Hub did not give it ({error})."
        ) from error


def hub_commit(folder: Path) -> str | None:
    """The commit of a folder that `resolve_model_folder` took from the Hub; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def check_is_model(folder: Path) -> None:
    """A folder of whole weights, not an adapter and not a training checkpoint."""
    if not (folder / "config.json").is_file() or is_part_of_training(folder):
        raise UserError(f"{folder} is not a model folder: {why_no_model(folder)}.")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{folder} is not a model folder: it has no safetensors.")


@dataclass(frozen=True)
class _Index:
    """What is read of `model.safetensors.index.json`."""

    weight_map: dict[str, str]

    def __post_init__(self) -> None:
        if strange := [name for name in self.weight_map.values() if Path(name).name != name]:
            raise ValueError(f"a weight file is a name in this folder, not {strange[0]!r}")


class WeightFiles:
    """Tensor name -> file, and reading of single tensors."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} is not a checkpoint: it has no config.json.")
        self.folder = folder
        self._file_of = self._locate()

    def _locate(self) -> dict[str, str]:
        if (self.folder / _INDEX).is_file():
            return read_typed(_Index, self.folder / _INDEX, _AGAIN).weight_map
        if not (self.folder / _SINGLE).is_file():
            raise UserError(f"{self.folder} holds neither {_SINGLE} nor {_INDEX}.")
        with self._open(_SINGLE) as file:
            return dict.fromkeys(file.keys(), _SINGLE)

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self.folder / name, framework="pt")
        except (SafetensorError, FileNotFoundError) as error:
            if (self.folder / name).is_file() and is_git_lfs_pointer(self.folder / name):
                raise UserError(
                    f"{self.folder / name} is a Git LFS pointer, not weights; run `git lfs pull` in that folder."
                ) from error
            raise UserError(
                f"{self.folder / name} is missing or damaged ({error}); download or export it again."
            ) from error

    def names(self) -> list[str]:
        """All tensors, file by file."""
        return sorted(self._file_of, key=lambda name: (self._file_of[name], name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor without reading it."""
        with self._open(self._file_of[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def item_bytes(self, name: str) -> int:
        """Bytes of one number of a tensor, without reading it."""
        with self._open(self._file_of[name]) as file:
            digits = re.sub(r"\D", "", file.get_slice(name).get_dtype())  # F32, BF16, I64, ...
        return int(digits) // 8

    def read(self, name: str) -> torch.Tensor:
        """One tensor on the CPU."""
        with self._open(self._file_of[name]) as file:
            return file.get_tensor(name)

    def read_finite(self, name: str) -> torch.Tensor:
        """As `read`; raises `UserError` for a tensor that holds NaN or infinity."""
        tensor = self.read(name)
        if tensor.is_floating_point() and tensor.numel():
            low, high = tensor.aminmax()  # NaN and both infinities show up in one of them
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise UserError(
                    f"{self.folder / self._file_of[name]}: {name} holds NaN or infinity; this checkpoint is broken. "
                    "Take an earlier one, or download it again."
                )
        return tensor

    def check_names(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        unread: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """The files must hold exactly these tensors in these shapes, and may hold those that are `unread`;
        otherwise `UserError`."""
        missing = sorted(set(shapes) - set(self._file_of))
        unknown = sorted(n for n in set(self._file_of) - set(shapes) if not unread(n))
        if missing or unknown:
            raise UserError(
                f"{self.folder} does not fit its config.json: {len(missing)} tensors missing "
                f"({', '.join(missing[:3])}), {len(unknown)} unknown ({', '.join(unknown[:3])})."
            )
        for name, shape in shapes.items():
            if self.shape(name) != shape:
                raise UserError(
                    f"{self.folder}: {name} has shape {self.shape(name)}, config.json implies {shape}."
                )


def _same(name: str) -> str:
    return name


@torch.no_grad()
def fill(
    model: nn.Module,
    files: WeightFiles,
    name_of: Callable[[str], str] = _same,
    *,
    unread: Callable[[str], bool] = lambda _: False,
) -> None:
    """Every parameter of `model` from the tensor of its name, in place; its own type and device are kept.

    Raises `UserError` for a tensor that is missing, unknown, of another shape or not finite: nothing is guessed.
    `name_of` gives a parameter's name in the files; tensors whose name is `unread` may be there and are left.
    """
    named = dict(model.named_parameters())
    files.check_names({name_of(n): tuple(p.shape) for n, p in named.items()}, unread)
    for name, parameter in named.items():
        parameter.copy_(files.read_finite(name_of(name)))


def load_strictly(
    model: nn.Module,
    files: WeightFiles,
    device: torch.device | str,
    name_of: Callable[[str], str] = _same,
    *,
    unread: Callable[[str], bool] = lambda _: False,
) -> nn.Module:
    """A network on `meta` -> in evaluation mode on `device`, filled as by `fill`.

    The files are held against it before any memory is asked for: a damaged config.json may imply terabytes.
    """
    shapes = {name_of(name): tuple(p.shape) for name, p in model.named_parameters()}
    files.check_names(shapes, unread)
    model.to_empty(device=device)
    fill(model, files, name_of, unread=unread)
    return model.eval()


_PIECES, _PIECE_BYTES = 64, 1 << 16


def fingerprint(folder: Path) -> str:
    """SHA-256 that tells checkpoints apart without reading 32 GB: config.json, and of every weight file its name,
    its size and 64 pieces of 64 kB, evenly spread from the header to the end."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for piece in range(_PIECES):
                file.seek(max(0, size - _PIECE_BYTES) * piece // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()
