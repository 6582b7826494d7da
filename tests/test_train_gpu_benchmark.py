"""`benchmarks/gpu.py` cannot rot: its sections run here on small shapes, and its rows fail as they should."""

from __future__ import annotations

import ast
import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import ROOT

BENCHMARKS = ROOT / "benchmarks"
ALLOWED = {
    "torch", "transformers", "numpy", "safetensors", "cv2", "PIL", "pyarrow", "peft", "rich", "typer",
    "molmoact_data", "molmoact_train", "vqvae",
}  # fmt: skip
SECTIONS = ("codes", "pointer", "training", "answer", "molmoact2")
LOCAL = {"gpu_rows", "gpu_molmoact2", "molmoact2_samples", "teacher_flops", "train_step"}


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
    assert [(r["what"], r["note"]) for r in rows if r["section"] == "molmoact2"] == [
        ("lora, reference: a row each, batch 1", ""),
        ("lora, packed rows, batch 1", ""),
        ("full, reference: a row each, batch 1", ""),
        ("full, packed rows, batch 1", ""),
        ("bf16, 10 steps, batch 1", ""),
        ("100 depth codes, 100% of the cells changed", "101 passes of the decoder"),
        ("100 depth codes, 30% of the cells changed", "31 passes of the decoder"),
    ]


def test_it_imports_nothing_that_a_bare_gpu_machine_lacks() -> None:
    for name in ("gpu", *LOCAL):
        tree = ast.parse((BENCHMARKS / f"{name}.py").read_text())
        found = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        found |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        packages = {module.partition(".")[0] for module in found}
        assert packages <= ALLOWED | set(sys.stdlib_module_names) | LOCAL


# Rows that fail


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of rows."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_rows

    return gpu_rows


class Step:
    """A backward pass whose optimizer then fails; the last activation is watched."""

    def __init__(self, error: Exception | None) -> None:
        self.network, self.error = torch.nn.Linear(4, 4), error
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)
        self.activation: weakref.ref[torch.Tensor] | None = None

    def __call__(self) -> None:
        hidden = self.network(torch.ones(2, 4))
        self.activation = weakref.ref(hidden)
        hidden.sum().backward()
        if self.error is not None:
            raise type(self.error)(*self.error.args)  # a kept one would keep these frames


@pytest.mark.parametrize(
    ("error", "note", "failed"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "does not fit the memory", False),
        (ValueError("heads do not divide\nwidth"), "failed: ValueError: heads do not divide", True),
        (RuntimeError(""), "failed: RuntimeError: ", True),
        (None, "", False),
    ],
)
def test_a_row_frees_what_its_step_left_before_the_next_one(
    rows: Any, error: Exception | None, note: str, *, failed: bool
) -> None:
    """Gradients and activations; the collector is off, so that nothing is freed by luck."""
    step = Step(error)
    setting = rows.Setting(torch.device("cpu"), real=False)
    row = rows.Row("training", "lora, batch 8", None, "samples/s")
    gc.disable()
    try:
        found = rows.measured(row, setting, 8, step, release=step.optimizer.zero_grad)
    finally:
        gc.enable()
    assert (found.note, found.failed, found.rate is None) == (note, failed, error is not None)
    assert all(p.grad is None for p in step.network.parameters())
    assert step.activation is not None
    assert step.activation() is None


def test_one_failure_stops_neither_the_section_nor_the_others(rows: Any) -> None:
    setting = rows.Setting(torch.device("cpu"), real=False)

    def good(setting: Any) -> Iterator[Any]:
        for batch, error in ((1, None), (2, ValueError("odd")), (3, None)):
            row = rows.Row("good", f"batch {batch}", None, "x/s")
            yield rows.measured(row, setting, batch, Step(error))

    def without_weights(setting: Any) -> Iterator[Any]:
        yield rows.Row("weights", "first", 1.0, "x/s")
        raise torch.OutOfMemoryError("CUDA out of memory.")

    sections = {"good": good, "weights": without_weights}
    found = rows.run(sections, ["weights", "good"], setting, 600.0)
    assert [(r.section, r.what, r.note) for r in found] == [
        ("weights", "first", ""),
        ("weights", "the rest of the section", "does not fit the memory"),
        ("good", "batch 1", ""),
        ("good", "batch 2", "failed: ValueError: odd"),
        ("good", "batch 3", ""),
    ]
    assert [r.failed for r in found] == [False, False, False, True, False]
    late = rows.run(sections, ["weights", "good"], setting, 0.0)
    assert [(r.section, r.note) for r in late] == [
        ("weights", ""),
        ("good", "not run: the time was over"),
    ]


def test_a_run_with_a_failed_row_writes_its_table_and_ends_with_1(
    rows: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import gpu

    def odd(setting: Any) -> Iterator[Any]:
        yield rows.measured(
            rows.Row("codes", "one", None, "x/s"), setting, 1, Step(ValueError("odd"))
        )

    monkeypatch.setitem(gpu.SECTIONS, "codes", odd)
    path = tmp_path / "gpu.json"
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--device", "cpu", "--sections", "codes", "--json", str(path)]
    )
    with pytest.raises(SystemExit, match="rows failed"):
        gpu.main()
    assert "failed: ValueError: odd" in capsys.readouterr().out
    assert json.loads(path.read_text())["rows"][0]["failed"] is True


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H100 of next year", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_the_share_is_of_the_card_that_runs_or_is_not_told(
    rows: Any, monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert rows.Setting(torch.device("cuda"), real=True).bf16_peak == peak
    assert rows.Setting(torch.device("cpu"), real=True).bf16_peak is None
