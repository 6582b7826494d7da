"""The Molmo pointer: answers are parsed exactly, and a checkpoint folder in the released layout points.

What the network says about pictures is held to the released files' answers in `test_train_molmo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN, ROOT
from hypothesis import given, strategies as st
from made_molmo import POINT, SAID, write_molmo
from made_released import COMMIT as COMMIT_IN_CACHE, into_cache

from molmoact_data.errors import UserError
from molmoact_data.labels.pointing import GripperPointer
from molmoact_data.teachers import molmo
from molmoact_data.teachers.answers import (
    Answer,
    answer_confidence,
    arms_from_percent,
    parse_points,
)
from molmoact_data.teachers.molmo import MolmoPointer
from molmoact_data.teachers.molmo2 import Molmo2Pointer
from molmoact_data.teachers.published import (
    BRANCH,
    COMMIT,
    DEPTH_WEIGHTS,
    MOLMO2_4B,
    MOLMO2_WEIGHTS,
    MOLMO_7B_D,
    POINTING_WEIGHTS,
    RELEASED_VQVAE,
    Published,
)
from molmoact_data.text.annotations import points_text

PERCENT = st.integers(0, 1000).map(lambda tenth: tenth / 10)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('<point x="63.5" y="44.5" alt="gripper">gripper</point>', [(63.5, 44.5)]),
        (' <point x="0" y="100" alt="a">a</point>', [(0, 100)]),
        ("<point x='1.0' y='2.0'>", [(1, 2)]),
        ('<point alt="x" y="2.0" x = "1.5" >', [(1.5, 2)]),
        ('<point x=" 7.5 " y=".5">', [(7.5, 0.5)]),
        ('<points x1="10.0" y1="20.0" x2="30.5" y2="40.1" alt="g">', [(10, 20), (30.5, 40.1)]),
        ('<point x="1" y="2">a</point> and <point x="3" y="4">b</point>', [(1, 2), (3, 4)]),
        ('<points x1="10.0" y1="20.0" x2="30.5" y2="40', [(10, 20)]),
        ('<points x1="10.0" x2="30.5" y2="40.0">', [(30.5, 40)]),
        ('<points x1="1.0" y1="2.0" x1="3.0" y1="4.0">', [(1, 2)]),
        ('<point alt=\'x="9" y="9"\' x="1" y="2">', [(1, 2)]),
        ('<point\n  x="1"\n  y="2"/>', [(1, 2)]),
    ],
)
def test_points_are_read(answer: str, expected: list[tuple[float, float]]) -> None:
    assert parse_points(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There are none.",
        "The gripper is at (63.5, 44.5).",
        '<point x="63.5" y="44.',
        '<point x="63.5">',
        '<point x="63.5" y="">',
        '<point x="-1.0" y="2.0">',
        '<point x="100.1" y="2.0">',
        '<point x="nan" y="2.0">',
        '<point x="1e1" y="2.0">',
        '<point x="12.3.4" y="2.0">',
        '<point x="1,5" y="2.0">',
        '<point x=1.0 y=2.0>',
        '<pointer x="1.0" y="2.0">',
        '<points x1="1.0" y2="2.0">',
        'x="1.0" y="2.0"',
        '<point alt="x="1" y="2">',
    ],
)  # fmt: skip
def test_malformed_answers_are_not_found(answer: str) -> None:
    assert parse_points(answer) == []


@given(st.lists(st.tuples(PERCENT, PERCENT), min_size=1, max_size=5))
def test_what_training_writes_is_read_back(points: list[tuple[float, float]]) -> None:
    """Points are written from left to right, those at one place from top to bottom."""
    assert parse_points(points_text(points, "robot gripper", "robot gripper")) == sorted(points)


@given(st.text())
def test_any_text_gives_points_in_range_or_none(text: str) -> None:
    for answer in (text, f"<point {text}>", f'<point x="{text}" y="1.0">'):
        assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in parse_points(answer))


def test_percent_becomes_unit_coordinates_as_the_reference_reads_it() -> None:
    """Reference: pixel = x/100*w, grid = pixel for 256 pixels; ours: grid = unit*255. Equal at 256."""
    unit = arms_from_percent([(63.5, 44.5)], 1, (256, 256))
    np.testing.assert_allclose(unit[0] * 255, [0.635 * 256, 0.445 * 256], rtol=1e-6)
    assert arms_from_percent([(100, 0)], 1, (240, 320)).tolist() == [[1, 0]]
    assert np.isnan(arms_from_percent([], 1, (240, 320))).all()


def test_arms_are_ordered_from_left_to_right() -> None:
    arms = arms_from_percent([(80, 10), (20, 30), (0, 0)], 2, (101, 101))
    assert arms[0, 0] < arms[1, 0]
    assert np.isnan(arms_from_percent([(80, 10)], 2, (101, 101))).all()


def test_confidence_is_of_the_digits_alone() -> None:
    """sqrt(0.9 * 0.4) = 0.6, whatever the words around them cost."""
    tokens, logprobs = ["<point", '"6', "3.5", "alt"], [math.log(p) for p in (0.1, 0.9, 0.4, 0.01)]
    assert answer_confidence(tokens, logprobs) == pytest.approx(0.6)
    assert answer_confidence(["none"], [0.0]) == 0


QUESTION = "point to the robot gripper"


class Brightness:
    """A `PointingModel` that says the brightness of the picture as x; black pictures have no gripper."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def answer(
        self,
        frames: Sequence[np.ndarray],
        question: str,
        *,
        is_complete: Callable[[str], bool],
        max_new_tokens: int,
    ) -> list[Answer]:
        assert (question, max_new_tokens) == (QUESTION, 64)
        self.batches.append(len(frames))
        return [self.about(float(frame.mean()) / 255 * 100, is_complete) for frame in frames]

    @staticmethod
    def about(percent: float, is_complete: Callable[[str], bool]) -> Answer:
        if percent == 0:
            return Answer("none", [0], ["none"], [0.0], complete=True)
        answer = Answer()
        for character in f'<point x="{percent:.1f}" y="25.0" alt="g">g</point>':
            answer.text += character
            answer.tokens.append(character)
            answer.logprobs.append(math.log(0.5) if character.isdigit() else math.log(0.1))
            if is_complete(answer.text):
                answer.complete = True
                break
        return answer


def grey_frames(*levels: int) -> np.ndarray:
    return np.stack([np.full((32, 48, 3), level, np.uint8) for level in levels])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_molmo(tmp_path_factory.mktemp("hub") / "tiny")


def test_a_checkpoint_folder_points(checkpoint: Path) -> None:
    pointer = MolmoPointer(str(checkpoint), device="cpu")
    assert isinstance(pointer, GripperPointer)
    points = pointer.point(grey_frames(51, 0), QUESTION)
    expected = [POINT[0] / 100 * 48 / 47, POINT[1] / 100 * 32 / 31]
    np.testing.assert_allclose(points.xy_NA2, [[expected]] * 2, rtol=1e-6)
    assert (points.confidence_NA > 0.9).all()
    assert [answer.text for answer in pointer.answers(list(grey_frames(7)), QUESTION)] == [SAID]
    assert pointer.point(grey_frames(51)[:0], QUESTION).xy_NA2.shape == (0, 1, 2)


def test_two_arms_need_two_points(checkpoint: Path) -> None:
    points = MolmoPointer(str(checkpoint), device="cpu", num_arms=2).point(grey_frames(9), QUESTION)
    assert np.isnan(points.xy_NA2).all()
    assert (points.confidence_NA == 0).all()


def test_batches_are_filled_up_and_answers_stay_with_their_frames(checkpoint: Path) -> None:
    """x is the brightness: 51/255 = 20 %, 204/255 = 80 %; the black picture has no gripper."""
    pointer = MolmoPointer(str(checkpoint), device="cpu")
    pointer.model, pointer.batch_size = model, _ = Brightness(), 2
    points = pointer.point(grey_frames(51, 0, 204), QUESTION)
    expected = [[0.2 * 48 / 47, 0.25 * 32 / 31], [np.nan] * 2, [0.8 * 48 / 47, 0.25 * 32 / 31]]
    np.testing.assert_allclose(points.xy_NA2[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(points.confidence_NA[:, 0], [0.5, 0, 0.5], rtol=1e-6)
    assert model.batches == [2, 2]  # three frames, the last batch filled up


def test_the_answer_ends_when_the_point_is_told(checkpoint: Path) -> None:
    pointer = MolmoPointer(str(checkpoint), device="cpu")
    pointer.model = Brightness()
    (answer,) = pointer.answers(list(grey_frames(51)), QUESTION)
    assert answer.text == '<point x="20.0" y="25.0"'


def test_a_folder_is_described_as_local(checkpoint: Path) -> None:
    described = MolmoPointer(str(checkpoint), device="cpu").describe()
    assert described == {
        "name": "molmo/tiny",
        "revision": "local",
        "licence": "that of the local files",
    }


def test_a_hub_id_is_fetched_at_its_commit_and_described(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The manifest has the commit that was fetched, whatever branch was asked for; Python files are never asked for."""
    asked: list[Published] = []

    def fake(published: Published) -> Path:
        asked.append(published)
        snapshot = tmp_path / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
        snapshot.parent.mkdir(exist_ok=True)
        if not snapshot.exists():
            snapshot.symlink_to(checkpoint)
        return snapshot

    monkeypatch.setattr(molmo, "fetch", fake)
    described = MolmoPointer(device="cpu").describe()
    assert described["name"] == "molmo/allenai/Molmo-7B-D-0924"
    assert described["revision"] == "0123456789abcdef0123456789abcdef01234567"
    assert described["licence"] == "Apache-2.0"
    MolmoPointer("allenai/Molmo-7B-O-0924", device="cpu")
    MolmoPointer("someone/else", revision="main", device="cpu")
    assert [(p.repository, p.revision) for p in asked] == [
        (MOLMO_7B_D.repository, MOLMO_7B_D.revision),
        ("allenai/Molmo-7B-O-0924", POINTING_WEIGHTS["allenai/Molmo-7B-O-0924"].revision),
        ("someone/else", "main"),
    ]
    assert not [pattern for p in asked for pattern in p.files if "py" in pattern]


def test_what_is_published_is_pinned_where_its_commit_is_known() -> None:
    """Two repositories follow their branch; the page says so, and every commit stands on it."""
    every = [
        *POINTING_WEIGHTS.values(),
        *MOLMO2_WEIGHTS.values(),
        *DEPTH_WEIGHTS.values(),
        RELEASED_VQVAE,
    ]
    follow = {one.repository for one in every if one.revision == BRANCH}
    assert follow == {"allenai/Molmo2-VideoPoint-4B", "allenai/MolmoAct-7B-D-0812"}
    pinned = [one for one in every if one.repository not in follow]
    assert all(COMMIT.fullmatch(one.revision) for one in pinned)
    assert len({one.revision for one in pinned}) == len(pinned) == 8
    page = (ROOT / "docs" / "teachers.md").read_text()
    assert all(one.revision in page and one.repository in page for one in pinned)


def test_what_follows_its_branch_is_known_by_the_commit_that_was_fetched(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Hub cache whose `main` is a commit, read by the Hub's own client."""
    repository = "allenai/Molmo2-VideoPoint-4B"
    into_cache(tmp_path, repository, checkpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    located = molmo._locate(repository, None, MOLMO2_4B, MOLMO2_WEIGHTS)
    assert located == (
        repository, COMMIT_IN_CACHE, "Apache-2.0", located[3],
    )  # fmt: skip
    assert located[3].name == COMMIT_IN_CACHE
    with pytest.raises(UserError, match=f"--revision {MOLMO2_4B.revision}"):
        molmo._locate(None, None, MOLMO2_4B, MOLMO2_WEIGHTS)


def test_what_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="name its commit"):
        MolmoPointer("someone/else", device="cpu")
    with pytest.raises(UserError, match="is no folder here and no Hub id"):
        MolmoPointer("./not/there", device="cpu")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=f"--revision {MOLMO_7B_D.revision}") as caught:
        MolmoPointer(device="cpu")
    assert "32.1 GB" in str(caught.value)
    assert "\n" not in str(caught.value)


MOLMO2 = GOLDEN / "molmo" / "tiny-molmo2"


@pytest.mark.skipif(not MOLMO2.is_dir(), reason=f"no checkpoint at {MOLMO2}; set MOLMOACT_GOLDEN")
def test_molmo2_is_the_same_teacher_with_other_words() -> None:
    """A folder of the second family: random weights find nothing; its answers count in thousandths."""
    pointer = Molmo2Pointer(str(MOLMO2), device="cpu", max_new_tokens=4)
    assert isinstance(pointer, GripperPointer)
    assert pointer.describe()["name"] == "molmo2/tiny-molmo2"
    assert np.isnan(pointer.point(grey_frames(51), QUESTION).xy_NA2).all()
    assert pointer.read('<points coords="1 1 635 442 2 1') == [(63.5, 44.2)]
    assert pointer.read('<point x="63.5" y="44.2"') == []


def test_a_checkpoint_of_the_other_family_is_one_line(checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"type 'molmo', not 'molmo2'|holds no tokenizer"):
        Molmo2Pointer(str(checkpoint), device="cpu")
    if MOLMO2.is_dir():
        with pytest.raises(UserError, match=r"preprocessor_config.json is missing"):
            MolmoPointer(str(MOLMO2), device="cpu")
