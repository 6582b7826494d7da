"""`benchmarks/gpu.py` cannot rot: its sections run here on small shapes, on whatever machine this is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

from golden import ROOT

BENCHMARKS = ROOT / "benchmarks"
ALLOWED = {
    "torch", "transformers", "numpy", "safetensors", "cv2", "PIL", "pyarrow", "peft", "rich", "typer",
    "molmoact_data", "molmoact_train", "vqvae",
}  # fmt: skip
SECTIONS = ("codes", "pointer", "training", "answer")


def test_small_shapes_give_a_table_and_a_json(tmp_path: Path) -> None:
    """Depth is left out: Depth-Anything's networks have no small size."""
    path = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--shapes", "small",
         "--sections", *SECTIONS, "--json", str(path)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == result
    rows = result["rows"]
    assert {row["section"] for row in rows} == set(SECTIONS)
    assert all(row["rate"] > 0 for row in rows)
    assert [r["what"] for r in rows if r["section"] == "training"] == [
        f"{tuning}, {name}, batch 1"
        for tuning in ("lora", "full")
        for name in ("reference: padded", "ours")
    ]


def test_it_imports_nothing_that_a_bare_gpu_machine_lacks() -> None:
    for name in ("gpu.py", "train_step.py", "teacher_flops.py"):
        tree = ast.parse((BENCHMARKS / name).read_text())
        found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        packages = {module.partition(".")[0] for module in found}
        assert packages <= ALLOWED | set(sys.stdlib_module_names) | {"teacher_flops", "train_step"}
