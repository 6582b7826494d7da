"""Every command that shows or ships labels says so where the teachers do not know this kind of picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_commands import Molmoact
from made_outputs import BrightestPixel, DotSource, FakeDepth, FakeTokenizer

from molmoact_data.errors import UserError
from molmoact_data.outputs.manifest import read_manifest
from molmoact_data.outputs.output import Output
from molmoact_data.teachers.choice import TeacherConfig, Teachers
from molmoact_data.teachers.knowledge import strange_choices, strange_teachers
from molmoact_data.teachers.registry import EMBEDDED_VQVAE, SIMULATED_ROBOT

WARNING = "rendered table-top scenes only; on dots their labels"


class EmbeddedPointer(BrightestPixel):
    def describe(self) -> dict[str, str]:
        return {"name": "embedded", "revision": "1", "licence": "Apache-2.0"}


def dots(robot_type: str | None) -> DotSource:
    source = DotSource()
    object.__setattr__(source, "info", replace(source.info, robot_type=robot_type))
    return source


EMBEDDED = Teachers(FakeDepth(), FakeTokenizer(), EmbeddedPointer())
OTHERS = Teachers(FakeDepth(), FakeTokenizer(), BrightestPixel())
SHIPS = {
    "publish": ("publish", "OUT", "--repo-id", "lab/dots", "--dry-run"),
    "export": ("export", "OUT", "--format", "conversations", "--output-path", "NEW"),
    "viz": ("viz", "OUT", "--output-path", "NEW.png", "--frames", "2"),
}


@pytest.mark.parametrize("command", SHIPS.values(), ids=SHIPS)
@pytest.mark.parametrize(
    ("teachers", "robot", "warned"),
    [(EMBEDDED, None, 1), (EMBEDDED, SIMULATED_ROBOT, 0), (OTHERS, "so101", 0)],
)
def test_what_shows_or_ships_labels_warns(
    make_output: Callable[..., Path],
    molmoact: Molmoact,
    tmp_path: Path,
    command: tuple[str, ...],
    teachers: Teachers,
    robot: str | None,
    warned: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = make_output(source=dots(robot), teachers=teachers)
    places = {"OUT": out, "NEW": tmp_path / "new", "NEW.png": tmp_path / "new.png"}
    code, _, stderr = molmoact(*(places.get(part, part) for part in command))
    assert code == 0, stderr
    assert caplog.text.count(WARNING) == warned
    assert ("gripper pointer" in caplog.text) == warned


@pytest.mark.parametrize(("robot", "warned"), [(None, 1), (SIMULATED_ROBOT, 0)])
def test_preview_warns_before_it_shows(
    molmoact: Molmoact,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    robot: str | None,
    warned: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import pipelines.preview

    monkeypatch.setattr(pipelines.preview, "open_source", lambda *_, **__: dots(robot))
    flags = ("--dataset-path", "dots", "--preset", "embedded", "--frames", 1)
    code, _, stderr = molmoact("preview", *flags, "--output-path", tmp_path / "sheet.png")
    assert code == 0, stderr
    assert caplog.text.count(WARNING) == warned
    assert ("depth, depth tokenizer" in caplog.text) == warned


def test_evaluate_labels_warns_before_anything_is_loaded(
    molmoact: Molmoact,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    def stop(*_: object) -> Teachers:
        raise UserError("far enough")

    evaluate = "molmoact_data.label_quality.evaluate"
    monkeypatch.setattr("molmoact_data.sources.opening.open_source", lambda *_: dots("so101"))
    monkeypatch.setattr(f"{evaluate}.check_truth", lambda *_, **__: None)
    monkeypatch.setattr("molmoact_data.teachers.choice.load_teachers", stop)
    flags = ("--dataset-path", "dots", "--output-path", tmp_path / "quality")
    code, _, stderr = molmoact("evaluate-labels", *flags)
    assert (code, "far enough" in stderr) == (2, True)
    assert caplog.text.count(WARNING) == 1


def test_an_embedded_codebook_is_known_by_its_file() -> None:
    """Its card says `vqvae`, as every codebook's does."""
    digest = hashlib.sha256(EMBEDDED_VQVAE.read_bytes()).hexdigest()
    cards = {
        "depth": {"name": "depth-anything-v2-small"},
        "depth_tokenizer": {"name": "vqvae", "revision": f"sha256:{digest}"},
    }
    assert strange_teachers(cards, "so101") == ("depth_tokenizer",)
    assert strange_teachers(cards, SIMULATED_ROBOT) == ()
    cards["depth_tokenizer"]["revision"] = "sha256:" + "0" * 64
    assert strange_teachers(cards, "so101") == ()


def test_a_teacher_that_is_not_asked_for_is_not_strange() -> None:
    chosen = TeacherConfig(depth="none", vqvae="embedded", pointer="molmo")
    assert strange_choices(chosen, "so101") == ()
    chosen = TeacherConfig(depth="depth-anything-v2", vqvae="embedded", pointer="molmo")
    assert strange_choices(chosen, "so101") == ("depth_tokenizer",)


def test_a_merge_of_two_robots_is_not_called_by_the_first(make_output: Callable[..., Path]) -> None:
    from pipelines.merge import merged_header

    rendered = make_output("a", source=dots(SIMULATED_ROBOT), teachers=EMBEDDED)
    real = DotSource(first_episode=10, name="real")
    other = make_output("b", source=real, teachers=EMBEDDED)
    merged = merged_header([Output.open(rendered), Output.open(other)])
    assert read_manifest(Output.open(rendered).storage).dataset.robot_type == SIMULATED_ROBOT
    assert merged.dataset.robot_type is None
    assert strange_teachers(merged.teachers, merged.dataset.robot_type) == ("gripper_pointer",)
