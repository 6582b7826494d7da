"""A folder of golden answers as `tests/golden/answers.tar.xz`: `python -m scripts.golden.pack FOLDER SMALL_VQVAE`.

Arrays lie uncompressed in the archive, so that what two files share is stored once.
What other people wrote is left out; the full VQ-VAE (17 MB) gives its place to the small one of
`scripts.golden.vqvae`. Weights of the tiny networks lose a few of their 24 bits of precision (which
changes an answer by less than its tolerance); every answer is byte for byte the original one.
"""

from __future__ import annotations

import io
import json
import lzma
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save

OURS = (
    "closed-loop", "depth_anything", "molmo", "molmoact2", "preprocess", "processor",
    "tiny-molmoact-d", "tiny-molmoact-o", "training_sample", "vqvae",
)  # fmt: skip
DROPPED_BITS = {
    "tiny-molmoact-d": 6,
    "tiny-molmoact-o": 6,
    "molmoact2/tiny-molmoact2": 7,
    "molmoact2/tiny-molmoact2-think": 8,
}
"""Folder -> bits of its weights that are given up; one or two more, and an answer moves by the tolerance."""
SMALL = 1024
"""Numbers of a tensor below which nothing is gained: norms, and rotary frequencies, which are no weights."""
LEFT_OUT = {"depth_anything/io.npz": "_a"}
"""File -> the ending of its arrays that are not packed: the smallest of three pictures says as much."""
ARCHIVE = Path(__file__).resolve().parents[2] / "tests" / "golden" / "answers.tar.xz"
# Literal bytes by their place in a 4-byte word: three quarters of the content are float32.
_LZMA2 = {"preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2, "dict_size": 1 << 26}
XZ = [{"id": lzma.FILTER_LZMA2, **_LZMA2}]


def rounded(values: np.ndarray, dropped: int) -> np.ndarray:
    """float32 with its last bits zero, rounded half up; other types, and small tensors, as they are."""
    if values.dtype != np.float32 or not dropped or values.size < SMALL:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    kept = (bits + (1 << (dropped - 1))) >> dropped << dropped
    return kept.astype(np.uint32).view(np.float32).reshape(values.shape)


def packed(path: Path, name: str) -> bytes:
    """The content of a file as it goes into the archive under `name`."""
    if path.suffix == ".npz":
        buffer, left_out = io.BytesIO(), LEFT_OUT.get(name, "\0")
        with np.load(path) as arrays:
            np.savez(buffer, **{k: v for k, v in arrays.items() if not k.endswith(left_out)})
        return buffer.getvalue()
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
        dropped = DROPPED_BITS.get(name.rpartition("/")[0], 0)
        return save({k: rounded(v, dropped) for k, v in load_file(path).items()}, metadata)
    if path.suffix == ".json":
        return json.dumps(json.loads(path.read_text()), separators=(",", ":")).encode()
    return path.read_bytes()


def members(full: Path, small_vqvae: Path) -> Iterator[tuple[str, Path]]:
    """(name in the archive, file), in order; without the pictures of other people's simulators."""
    for part in OURS:
        folder = small_vqvae if part == "vqvae" else full / part
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            if part != "closed-loop" or path.suffix == ".json":
                yield f"{part}/{path.relative_to(folder).as_posix()}", path


def main(full: Path, small_vqvae: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w"
    ) as tar:  # without dates and owners: equal input, equal bytes
        for name, path in members(full, small_vqvae):
            content = packed(path, name)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    ARCHIVE.parent.mkdir(exist_ok=True)
    ARCHIVE.write_bytes(lzma.compress(buffer.getvalue(), filters=XZ))
    print(f"{ARCHIVE.stat().st_size:,} bytes in {ARCHIVE}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
