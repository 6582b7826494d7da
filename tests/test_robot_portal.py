"""The portal: what it asks the model, and its page in a real browser that may reach no other host."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_gl import needs_gl
from made_worlds import FunctionPolicy

from molmoact_data.errors import UserError
from molmoact_data.outputs.output import Output
from molmoact_data.pictures.film import write_picture
from molmoact_data.policies import ActionChunk
from molmoact_robot.portal.conversation import Table, ask, to_grid_point
from molmoact_robot.portal.live import Scenes
from molmoact_robot.portal.recorded import Episodes

CHROMIUM = Path("/usr/bin/chromium")
ONLY_THIS_MACHINE = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
PICTURE = np.full((120, 200, 3), 90, np.uint8)


class Steerable(FunctionPolicy):
    """Goes forwards; steered, it goes where the last point lies."""

    def __init__(self, **info) -> None:
        super().__init__(lambda _: None, action_dim=7, horizon=8, **info)

    def act(self, observation, *, trace=None):
        self.observations.append(observation)
        self.traces.append(trace)
        actions = np.zeros((8, 7), np.float32)
        actions[:, 0], actions[:, 6] = 0.5, 1.0
        if trace is not None:
            actions[:, 0] = trace[-1][0] / 255
        return ActionChunk(
            actions, trace_P2=np.array([[0, 0], [255, 255]], np.float32), text="it thinks"
        )


# --- what is asked --------------------------------------------------------------------------------


def test_a_click_is_a_point_on_the_grid_whatever_the_pictures_size() -> None:
    assert to_grid_point(0, 0, 120, 200) == (0, 0)
    assert to_grid_point(199, 119, 120, 200) == (255, 255)
    assert to_grid_point(100, 60, 120, 200) == (128, 129)
    table = Table((PICTURE,))
    for column in range(7):
        table = table.with_click(column * 20, 60, at=column)
    assert [x for x, _ in table.points] == [0, 26, 51, 77, 103], "five and no more"
    assert Table().with_click(3, 3, at=0) == Table()


def test_the_path_is_drawn_as_the_model_sees_it() -> None:
    table = Table((PICTURE,)).with_click(180, 60, at=2).with_click(20, 60, at=1)
    assert [x for x, _ in table.points] == [26, 231], (
        "in the order of the clicks, not of their arrival"
    )
    drawn = table.drawn()
    assert drawn[60, 100].tolist() == [0, 255, 255]
    assert (PICTURE == 90).all(), "not in place"


def test_the_models_picture_budget_is_kept() -> None:
    table = Table().with_picture(PICTURE, 2).with_picture(PICTURE, 2)
    with pytest.raises(UserError, match="reads 2 pictures, and so many are here"):
        table.with_picture(PICTURE, 2)


def test_free_and_steered_answers_stand_side_by_side_with_their_difference() -> None:
    policy = Steerable(num_cameras=2)
    table = Table((PICTURE, PICTURE)).with_click(0, 0, at=0).with_click(199, 0, at=1)
    found = ask(policy, table, " pick it up ")
    assert policy.traces == [None, [[0, 0], [255, 0]]]
    assert [o.instruction for o in policy.observations] == ["pick it up"] * 2
    assert len(policy.observations[0].images) == 2
    np.testing.assert_allclose(found.difference_HD[:, 0], 0.5)
    assert ask(policy, Table((PICTURE,)), "go").steered is None


@pytest.mark.parametrize(
    ("table", "words", "message"),
    [(Table(), "go", "add a picture"), (Table((PICTURE,)), " ", "say what"),
     (Table((PICTURE,), ((0.0, (1, 1)),)), "go", "one point is no path")],
)  # fmt: skip
def test_what_is_missing_is_said(table, words, message) -> None:
    with pytest.raises(UserError, match=message):
        ask(Steerable(), table, words)


@needs_gl
def test_the_arm_follows_the_finger_in_a_live_scene() -> None:
    scenes, policy = Scenes(image_size=64, quality="flat"), Steerable(num_cameras=2)
    _, words = scenes.new("me", "pick", 3)
    other, _ = scenes.new("you", "pick", 4)
    steps = list(scenes.follow("me", policy, [(9, 9), (255, 9)], 3))
    assert policy.traces == [[[9, 9], [255, 9]]]
    assert policy.observations[0].instruction == words
    assert [line for _, line in steps] == [f"step {n}: running" for n in (1, 2, 3)]
    assert (steps[0][0] != steps[-1][0]).any(), "it moves"
    list(scenes.follow("me", policy, [], 1))
    assert policy.traces[-1] is None
    assert policy.observations[-1].step == 3
    assert (other == scenes.new("you", "pick", 4)[0]).all(), "nobody else's scene moved"
    scenes.close()


def test_the_command_opens_a_page_over_the_policy(molmoact, monkeypatch, tmp_path) -> None:
    pytest.importorskip("gradio", reason="needs gradio")
    (tmp_path / "config.json").write_text('{"model_type": "molmoact"}')
    policy = Steerable(num_cameras=2)
    monkeypatch.setattr("molmoact_data.policies.load_policy", lambda *_, **__: policy)
    opened = {}
    monkeypatch.setattr(
        "molmoact_robot.portal.app.serve", lambda app, **where: opened.update(where, app=app)
    )
    code, _, err = molmoact("portal", "--checkpoint", tmp_path, "--port", 7999)
    assert code == 0, err
    assert (opened["host"], opened["port"]) == ("127.0.0.1", 7999)
    assert "open http://127.0.0.1:7999" in err


# --- in a browser ---------------------------------------------------------------------------------


# --- recorded episodes ----------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    from molmoact_train.debug.data import write_debug_dataset

    return write_debug_dataset(tmp_path / "data", episodes=3, frames=6, size=56, chunk_size=4)


def recorded_actions(folder, episode):
    """Straight from the Parquet file."""
    rows = pq.read_table(next((folder / "data").glob("*.parquet"))).to_pylist()
    return np.array([r["action"] for r in rows if r["episode_index"] == episode], np.float32)


def test_a_recorded_frame_stands_beside_the_answer_to_it(recorded) -> None:
    episodes, policy = Episodes(Output.open(recorded)), Steerable(num_cameras=2)
    beside = episodes.beside(policy, 1, 4)
    true_TD = recorded_actions(recorded, 1)
    np.testing.assert_array_equal(beside.recorded.actions_HD, true_TD[4:6])
    answered = np.array([[0.5, 0, 0, 0, 0, 0, 1]] * 2, np.float32)
    np.testing.assert_allclose(beside.difference_HD, answered - true_TD[4:6])
    assert [row[1] for row in beside.table()["data"]] == ["recorded", "answered", "difference"] * 2
    assert beside.line().startswith("episode 1, frame 4: move the square. Mean difference")
    assert (beside.answered_picture != beside.recorded_picture).any()
    assert policy.traces == [None], "the model goes its own way"
    assert episodes.beside(policy, 1, 99).recorded.frame == 5, "no further than the end"
    with pytest.raises(UserError, match=r"answers 6 action dimensions, the data have 7"):
        episodes.beside(FunctionPolicy(lambda _: None, action_dim=6, horizon=8), 1, 0)


@pytest.fixture
def page(recorded):
    """The portal over a steerable policy, open in Chromium; `page.foreign`: what it asked of other hosts."""
    gradio = pytest.importorskip("gradio", reason="needs gradio")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if not CHROMIUM.is_file():
        pytest.skip("no Chromium here (apt-get install chromium)")
    from molmoact_robot.portal.app import build, serve

    policy, scenes = Steerable(num_cameras=2), Scenes(image_size=64, quality="flat")
    app = build(policy, None, scenes, Episodes(Output.open(recorded)))
    address = serve(app, host="127.0.0.1", port=None, wait=False)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=ONLY_THIS_MACHINE)
        opened = browser.new_page()
        opened.set_default_timeout(60_000)
        opened.foreign = []

        def note(request) -> None:
            if not request.url.startswith((address.rstrip("/"), "data:", "blob:")):
                opened.foreign.append(request.url)

        opened.on("request", note)
        opened.goto(address)
        opened.policy = policy
        yield opened
        browser.close()
    app.close()
    scenes.close()
    assert gradio


def click_at(page, selector: str, x_share: float, arrived: str) -> None:
    """Click on a picture, at half its height, until `arrived` holds.

    Gradio replaces the picture after every answer; a click whose two halves meet two pictures is none.
    """
    where = f"document.querySelector('{selector}')"
    for _ in range(10):
        page.wait_for_function(f"{where}?.naturalWidth > 0")
        box = page.locator(selector).bounding_box()
        at = {"x": x_share * box["width"], "y": box["height"] / 2}
        page.locator(selector).click(position=at)
        try:
            page.wait_for_function(arrived, timeout=60_000)
        except playwright_timeout():
            continue
        return
    raise AssertionError(f"ten clicks on {selector} did not arrive")


def playwright_timeout() -> type[Exception]:
    from playwright.sync_api import TimeoutError as NotInTime

    return NotInTime


@pytest.mark.browser
def test_upload_click_steer_and_start_anew(page, tmp_path) -> None:
    write_picture(tmp_path / "front.png", PICTURE)
    page.locator("#upload input[type=file]").set_input_files(str(tmp_path / "front.png"))
    written = "document.querySelector('#points textarea, #points input').value"
    for number, column in enumerate((20, 60, 100, 140, 180), 1):
        arrived = f"{written}.split('  ').filter(Boolean).length == {number}"
        click_at(page, "#canvas img", column / 200, arrived)
    points = page.locator("#points textarea, #points input").input_value().split("  ")
    found = [tuple(map(int, p.split(","))) for p in points]
    expected = [to_grid_point(c, 60, 120, 200) for c in (20, 60, 100, 140, 180)]
    np.testing.assert_allclose(found, expected, atol=3)
    page.locator("#instruction textarea").fill("pick up the cube")
    page.locator("#ask").click()
    page.wait_for_function("document.querySelector('#talk').innerText.includes('it thinks')")
    assert page.policy.traces == [None, [list(p) for p in found]]
    table = page.locator("#actions").inner_text()
    for word in ("free", "steered", "difference"):
        assert word in table
    page.locator("#anew").click()
    page.wait_for_function("document.querySelector('#points textarea, #points input').value == ''")
    page.wait_for_function("!document.querySelector('#talk').innerText.includes('it thinks')")
    assert page.foreign == [], "no request to any other host"


@pytest.mark.browser
@needs_gl
def test_a_live_scene_follows_the_finger(page) -> None:
    page.get_by_role("tab", name="Table-top, live").click()
    page.locator("#begin").click()
    page.wait_for_function(
        "document.querySelector('#live-state textarea, #live-state input').value == 'step 0'"
    )
    source = "document.querySelector('#live img').getAttribute('src')"
    for share in (0.45, 0.55):
        before = page.evaluate(source)
        click_at(page, "#live img", share, f"{source} != '{before}'")
    page.locator("#follow").click()
    page.wait_for_function(
        "document.querySelector('#live-state textarea, #live-state input').value.startsWith('step 8')"
    )
    assert len(page.policy.traces[-1]) == 2
    assert page.foreign == []


@pytest.mark.browser
def test_stepping_through_a_recorded_episode(page, recorded) -> None:
    where = "document.querySelector('#where textarea, #where input').value"
    page.get_by_role("tab", name="Recorded").click()
    page.wait_for_function(f"{where}.startsWith('episode 0, frame 0')")
    for frame in (1, 2):
        page.locator("#next").click()
        page.wait_for_function(f"{where}.startsWith('episode 0, frame {frame}')")
    page.locator("#back").click()
    page.wait_for_function(f"{where}.startsWith('episode 0, frame 1')")
    table = page.locator("#beside").inner_text()
    for word in (
        "recorded",
        "answered",
        "difference",
        f"{recorded_actions(recorded, 0)[1, 0]:.4f}",
    ):
        assert word in table
    page.locator("#done img").wait_for()
    assert page.foreign == []
