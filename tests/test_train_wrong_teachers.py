"""A teacher's folder that is wrong is one line: another network, missing or spoilt tensors, a Git LFS pointer.

Molmo's own list is in `test_train_molmo.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden import GOLDEN
from made_released import write_depth_anything, write_vqvae
from safetensors.torch import load_file, save_file

from molmoact_data.errors import UserError
from molmoact_data.teachers.depth_anything import DepthAnythingV2
from molmoact_data.teachers.published import RELEASED_VQVAE
from molmoact_train.families.molmo2.pointing import Molmo2Pointing
from vqvae import checkpoint as checkpoint_io

Spoil = Callable[[Path], object]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
TINY_MOLMO2 = GOLDEN / "molmo" / "tiny-molmo2"


def lfs(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes(POINTER)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        (path,) = folder.glob("*.safetensors")
        read = load_file(path)
        change(read)
        save_file(read, path, metadata={"format": "pt"})

    return spoil


def config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def first_weight_nan(read: dict[str, torch.Tensor]) -> None:
    name = min(name for name, tensor in read.items() if tensor.is_floating_point())
    read[name] = torch.full_like(read[name], float("nan"))


def without_special_tokens(folder: Path) -> None:
    for path in folder.glob("*token*.json"):
        path.write_text(path.read_text().replace("<im_patch>", "<something>"))


@pytest.mark.skipif(
    not TINY_MOLMO2.is_dir(), reason=f"no golden answers at {TINY_MOLMO2}; set MOLMOACT_GOLDEN"
)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (config(model_type="llama"), "type 'llama', not 'molmo2'"),
        (tensors(lambda read: read.popitem()), "tensors? missing|missing"),
        (tensors(first_weight_nan), "holds NaN"),
        (lfs("config.json"), "is a Git LFS pointer"),
        (without_special_tokens, "<im_patch>"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    ],
)
def test_molmo2(tmp_path: Path, spoil: Spoil, said: str) -> None:
    folder = tmp_path / "molmo2"
    shutil.copytree(TINY_MOLMO2, folder)
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        Molmo2Pointing.from_folder(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (tensors(lambda read: read.pop("neck.convs.0.weight")), "neck.convs.0.weight' is missing"),
        (tensors(lambda read: read.update(other=torch.zeros(1))), "'other' is unknown"),
        (tensors(first_weight_nan), "holds NaN"),
        (cut("model.safetensors"), "no Depth-Anything-V2 checkpoint"),
        (lfs("model.safetensors"), "is a Git LFS pointer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no Depth-Anything-V2 checkpoint"),
    ],
)
def test_depth(tmp_path: Path, spoil: Spoil, said: str) -> None:
    folder = write_depth_anything(tmp_path / "dav2")
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        DepthAnythingV2("vits", str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_an_original_depth_file_that_was_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "depth_anything_v2_vits.pth").write_bytes(POINTER)
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        DepthAnythingV2("vits", str(tmp_path / "depth_anything_v2_vits.pth"), device="cpu")


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(path: Path) -> None:
        content = torch.load(path, weights_only=True)
        change(content["weights"])
        torch.save(content, path)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (weights(lambda read: read.pop("module.encoder.0.bias")), "encoder.0.bias' is missing"),
        (weights(lambda read: read.update({"module.x": torch.zeros(1)})), "'x' is unknown"),
        (weights(lambda read: read["module._vq_vae._embedding"].fill_(torch.nan)), "'codebook' holds NaN"),
        (weights(lambda read: read.update({"module.encoder.0.bias": torch.zeros(3)})), "imply"),
        (weights(lambda read: read.pop("module.encoder.0.weight")), "not a depth VQ-VAE"),
        (lambda path: torch.save({"weights": [1]}, path), "key 'weights'"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1000]), "was not opened"),
        (lambda path: path.write_bytes(POINTER), "is a Git LFS pointer"),
    ],
)  # fmt: skip
def test_vqvae(tmp_path: Path, spoil: Spoil, said: str) -> None:
    path = write_vqvae(tmp_path / "vae-final.pt")
    spoil(path)
    with pytest.raises(UserError, match=said) as caught:
        checkpoint_io.load(path)
    assert "\n" not in str(caught.value)


def test_the_fetched_codebook_has_its_repositorys_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself says nothing; a copy of it of unknown origin claims nothing."""
    path = write_vqvae(tmp_path / "molmoact" / "vae-final.pt")
    monkeypatch.chdir(tmp_path)
    assert checkpoint_io.load(path).licence == checkpoint_io.UNKNOWN_LICENCE
    fetched = []
    monkeypatch.setattr(
        "molmoact_data.teachers.codebook.fetch", lambda what: fetched.append(what) or path.parent
    )
    assert checkpoint_io.load("released").licence == "Apache-2.0"
    assert fetched == [RELEASED_VQVAE]
