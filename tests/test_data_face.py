"""The public face: which names it has, that importing it costs nothing, and that its documents run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import molmoact
from molmoact_data.statistics import read_entries
from molmoact_train.debug.data import write_debug_dataset
from molmoact_train.debug.tiny import write_tiny_checkpoint

ROOT = Path(__file__).resolve().parent.parent
NAMES = [
    "ActionChunk", "DatasetStatistics", "FrameDataset", "Observation", "Output", "PredictionFailed",
    "UserError", "VQVAECodec", "load_network", "load_policy", "open_source", "parse",
]  # fmt: skip


def test_the_names_are_these_and_stay() -> None:
    assert molmoact.__all__ == NAMES
    assert set(NAMES) < set(dir(molmoact))
    for name in NAMES:
        assert getattr(molmoact, name).__name__ == name
    with pytest.raises(AttributeError, match="it has: ActionChunk"):
        molmoact.nothing  # noqa: B018


def test_a_type_checker_sees_the_same_names() -> None:
    text = (ROOT / "molmoact" / "__init__.py").read_text()
    assert sorted(re.findall(r"(\w+) as \1\b", text)) == NAMES


def run(code: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    path = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=path, capture_output=True, text=True
    )


def test_importing_it_loads_nothing_heavy() -> None:
    heavy = {
        "torch",
        "apache_beam",
        "transformers",
        "datasets",
        "cv2",
        "pandas",
        "pyarrow",
        "numpy",
    }
    done = run(f"import sys, molmoact; print(sorted(set(sys.modules) & {heavy!r}))")
    assert done.stdout.strip() == "[]", done.stderr


def test_reading_an_output_loads_neither_torch_nor_beam(make_output) -> None:
    code = (
        f"import sys, molmoact; out = molmoact.Output.open({str(make_output())!r}); next(out.rows());"
        "molmoact.parse('x', action_dim=7); molmoact.open_source, molmoact.load_policy;"
        "print(sorted(set(sys.modules) & {'torch', 'apache_beam', 'transformers'}))"
    )
    done = run(code)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(molmoact._PLACES, "VQVAECodec", "no_such_package.codec")
    monkeypatch.delitem(vars(molmoact), "VQVAECodec", raising=False)
    with pytest.raises(
        ImportError, match=r"needs the Python package 'no_such_package'.*pip install"
    ):
        molmoact.VQVAECodec  # noqa: B018


def test_the_module_is_the_command() -> None:
    for program in ("molmoact", "cli"):
        done = subprocess.run(
            [sys.executable, "-m", program, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, "preprocess" in done.stdout) == (0, True), done.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that docs/python.md names."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "examples").symlink_to(ROOT / "examples")
    data = write_debug_dataset(folder / "out" / "demo", episodes=3, frames=6)
    entries = read_entries(data / "dataset_statistics.json")
    write_tiny_checkpoint(folder / "model", norm_stats=entries)
    weights = ROOT / "molmoact_data" / "teachers" / "weights" / "embedded_vqvae.safetensors"
    shutil.copy(weights, folder / "codebook.safetensors")
    return folder


def test_every_block_of_the_page_runs(workplace: Path) -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 6 == text.count("\n## ")
    done = run("\n".join(blocks), workplace)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert printed[0].startswith("lerobot-v")
    assert "torch.Size([4, 3, 96, 96]) torch.Size([4, 4, 7]) torch.Size([4, 4])" in printed
    assert "[[[12, 40], [60, 90]]] ['no action row of 7 values']" in printed
    assert any(line.startswith("molmoact debug/square") for line in printed)


def test_the_notebook_runs_from_top_to_bottom(workplace: Path) -> None:
    notebook = json.loads((ROOT / "examples" / "first_steps.ipynb").read_text())
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert len(cells) == 5
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells), "stripped"
    done = run("\n".join("".join(c["source"]) for c in cells), workplace)
    assert done.returncode == 0, done.stderr
    assert "(8, 7) (8, 7)" in done.stdout or "(4, 7) (4, 7)" in done.stdout
