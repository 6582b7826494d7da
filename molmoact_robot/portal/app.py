"""The page, in Gradio. It asks no other host for anything, fonts included."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from molmoact_data.errors import UserError
from molmoact_data.pictures.overlay import draw_trace
from molmoact_data.policies import ActionChunk, Policy, PredictionFailed
from molmoact_robot.evaluation.film import DepthPicture
from molmoact_robot.portal.conversation import Answers, Table, ask
from molmoact_robot.portal.live import Scenes
from molmoact_robot.portal.recorded import Episodes
from molmoact_robot.tabletop.tasks import FAMILIES

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
import gradio as gr

Rgb = NDArray[np.uint8]
SYSTEM_FONT, FIXED_FONT = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
EVERY_CLICK: Mapping[str, Any] = {"trigger_mode": "multiple", "show_progress": "hidden"}
"""Without both, quick clicks are lost: an event does not fire while it runs, and its veil covers the picture."""
BUTTONS: Any = ["download", "fullscreen"]
"""On a picture; Gradio's own choice has one that sends it to another host."""
CLOCK_JS = "(table, clock) => [table, performance.now()]"
"""Stamps a click where it is made; requests may overtake each other on the way."""


def build(
    policy: Policy,
    depth_picture: DepthPicture | None,
    scenes: Scenes,
    episodes: Episodes | None = None,
) -> gr.Blocks:
    """The page over one policy; with `episodes`, recorded ones to step through."""
    info = policy.info
    with gr.Blocks(title="MolmoAct", analytics_enabled=False) as page:
        gr.Markdown(
            f"## {info.family} in `{info.statistics_key}`\n{info.horizon} steps of {info.action_dim} values per "
            f"answer; reads up to {info.num_cameras} pictures, the external camera first."
        )
        with gr.Tab("Pictures"):
            _pictures(policy, depth_picture)
        if episodes is not None:
            with gr.Tab("Recorded") as tab:
                _recorded(tab, policy, depth_picture, episodes)
        with gr.Tab("Table-top, live"):
            _live(policy, scenes)
    return page


def serve(page: gr.Blocks, *, host: str, port: int | None, wait: bool = True) -> str:
    """Launch it; returns the address. Without a port, the first free one from 7860."""
    theme = gr.themes.Default(font=SYSTEM_FONT, font_mono=FIXED_FONT)
    _, address, _ = page.launch(
        server_name=host, server_port=port, share=False, quiet=True, theme=theme,
        prevent_thread_lock=not wait, show_error=True, footer_links=[],
    )  # fmt: skip
    return str(address)


def _pictures(policy: Policy, depth_picture: DepthPicture | None) -> None:
    table = gr.State(Table())
    clock = gr.Number(visible="hidden")
    with gr.Row():
        with gr.Column():
            upload = gr.Image(
                label="Add a picture",
                type="pil",
                image_mode=None,  # as it is: converted by the page, a 16-bit picture is clipped
                sources=["upload"],
                elem_id="upload",
            )
            canvas = gr.Image(
                label="First view: click up to five points to steer",
                interactive=False,
                elem_id="canvas",
                buttons=BUTTONS,
            )
            points = gr.Textbox(label="Points, 0..255", interactive=False, elem_id="points")
            instruction = gr.Textbox(label="What to do", elem_id="instruction")
            with gr.Row():
                go = gr.Button("Ask", variant="primary", elem_id="ask")
                unpoint = gr.Button("Clear points", elem_id="unpoint")
                anew = gr.Button("Start anew", elem_id="anew")
        with gr.Column():
            with gr.Row():
                trace = gr.Image(label="Path it plans", interactive=False, buttons=BUTTONS)
                depth = gr.Image(label="Depth it writes", interactive=False, buttons=BUTTONS)
            actions = gr.Dataframe(label="Actions: free, steered, difference", elem_id="actions")
            talk = gr.Chatbot(label="Conversation", elem_id="talk", buttons=["copy"])

    def shown(now: Table) -> tuple[Table, Rgb | None, str]:
        return now, now.drawn(), "  ".join(f"{x},{y}" for x, y in now.points)

    def add(now: Table, picture: Image.Image | None) -> tuple[Any, ...]:
        if picture is None:
            return (*shown(now), None)
        with_it = _told(now.with_upload, picture, policy.info.num_cameras)
        return (*shown(with_it), None)

    def click(now: Table, at: float, event: gr.SelectData) -> tuple[Any, ...]:
        column, row = event.index
        return shown(now.with_click(int(column), int(row), at))

    def answer(now: Table, words: str, before: list[dict[str, Any]]) -> tuple[Any, ...]:
        found = _told(ask, policy, now, words)
        said = [*before, {"role": "user", "content": words}]
        said.append({"role": "assistant", "content": _words(found)})
        codes = found.free.depth_codes
        painted = None if codes is None or depth_picture is None else depth_picture(codes)
        return _with_trace(now.pictures[0], found.free), painted, table_of(found), said

    view = [table, canvas, points]
    upload.upload(add, [table, upload], [*view, upload], api_visibility="private")
    canvas.select(click, [table, clock], view, js=CLOCK_JS, api_visibility="private", **EVERY_CLICK)
    go.click(
        answer, [table, instruction, talk], [trace, depth, actions, talk], api_visibility="private"
    )
    unpoint.click(lambda now: shown(Table(now.pictures)), [table], view, api_visibility="private")
    anew.click(
        lambda: (*shown(Table()), None, None, None, []), None, [*view, trace, depth, actions, talk],
        api_visibility="private",
    )  # fmt: skip


def _recorded(
    tab: gr.Tab, policy: Policy, depth_picture: DepthPicture | None, episodes: Episodes
) -> None:
    numbers = episodes.numbers
    with gr.Row():
        episode = gr.Dropdown(numbers, value=numbers[0], label="Episode", elem_id="episode")
        frame = gr.Slider(
            0, episodes.length(numbers[0]) - 1, value=0, step=1, label="Frame", elem_id="frame"
        )
        back = gr.Button("Back", elem_id="back")
        on = gr.Button("Next", variant="primary", elem_id="next")
    line = gr.Textbox(label="Where", interactive=False, elem_id="where")
    with gr.Row():
        done = gr.Image(label="Recorded path", interactive=False, elem_id="done", buttons=BUTTONS)
        planned = gr.Image(label="Path the model plans", interactive=False, buttons=BUTTONS)
        depth = gr.Image(label="Depth the model writes", interactive=False, buttons=BUTTONS)
    actions = gr.Dataframe(label="Recorded, answered, difference", elem_id="beside")
    shown = [line, done, planned, depth, actions]

    def show(number: int, position: float) -> tuple[Any, ...]:
        beside = _told(episodes.beside, policy, int(number), int(position))
        codes = beside.answer.depth_codes
        painted = None if codes is None or depth_picture is None else depth_picture(codes)
        pictures = (beside.recorded_picture, beside.answered_picture, painted)
        return (beside.line(), *pictures, beside.table())

    def step(number: int, position: float, by: int) -> tuple[Any, ...]:
        last = episodes.length(int(number)) - 1
        at = max(0, min(int(position) + by, last))
        return (gr.Slider(maximum=last, value=at), *show(number, at))

    def begin(number: int) -> tuple[Any, ...]:
        return step(number, 0, 0)

    where = [episode, frame]
    tab.select(show, where, shown, api_visibility="private")
    on.click(partial(step, by=1), where, [frame, *shown], api_visibility="private")
    back.click(partial(step, by=-1), where, [frame, *shown], api_visibility="private")
    frame.release(show, where, shown, api_visibility="private")
    episode.input(begin, [episode], [frame, *shown], api_visibility="private")


def _live(policy: Policy, scenes: Scenes) -> None:
    table = gr.State(Table())
    clock = gr.Number(visible="hidden")
    gr.Markdown(
        "Draw a path with up to five clicks and let the arm follow; without one it goes its own way."
    )
    with gr.Row():
        task = gr.Dropdown(list(FAMILIES), value=FAMILIES[0], label="Task", elem_id="task")
        seed = gr.Number(value=0, precision=0, label="Scene", elem_id="seed")
        execute = gr.Slider(
            1, policy.info.horizon, value=policy.info.horizon, step=1, label="Steps per answer"
        )
        begin = gr.Button("New scene", elem_id="begin")
    view = gr.Image(label="Front camera", interactive=False, elem_id="live", buttons=BUTTONS)
    words = gr.Textbox(label="Task", interactive=False, elem_id="task-words")
    state = gr.Textbox(label="State", interactive=False, elem_id="live-state")
    with gr.Row():
        follow = gr.Button("Follow", variant="primary", elem_id="follow")
        unpoint = gr.Button("Clear path")

    def fresh(family: str, number: float, request: gr.Request) -> tuple[Any, ...]:
        picture, instruction = _told(scenes.new, str(request.session_hash), family, int(number))
        return Table((picture,)), picture, instruction, "step 0"

    def click(now: Table, at: float, event: gr.SelectData) -> tuple[Any, ...]:
        column, row = event.index
        clicked = now.with_click(int(column), int(row), at)
        return clicked, clicked.drawn()

    def go(now: Table, steps: float, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        if not now.pictures:
            raise gr.Error("make a scene first")
        visitor = str(request.session_hash)
        try:
            for picture, line in scenes.follow(visitor, policy, now.points, int(steps)):
                yield Table((picture,)), picture, line
        except (UserError, PredictionFailed) as error:
            raise gr.Error(str(error)) from error

    begin.click(
        fresh, [task, seed], [table, view, words, state], api_visibility="private",
        show_progress_on=[words],  # not on the picture: its veil swallows the first clicks
    )  # fmt: skip
    view.select(
        click, [table, clock], [table, view], js=CLOCK_JS, api_visibility="private", **EVERY_CLICK
    )
    follow.click(
        go, [table, execute], [table, view, state], api_visibility="private", show_progress="hidden"
    )
    unpoint.click(
        lambda now: (Table(now.pictures), Table(now.pictures).drawn()), [table], [table, view], api_visibility="private"
    )  # fmt: skip


def table_of(found: Answers) -> dict[str, Any]:
    """Rows for people: step by step the free action, the steered one and their difference."""
    dims = range(found.free.actions_HD.shape[1])
    parts = {"free": found.free.actions_HD}
    if found.steered is not None and found.difference_HD is not None:
        parts |= {"steered": found.steered.actions_HD, "difference": found.difference_HD}
    rows = [
        [step, name, *(f"{values_HD[step, d]:.4f}" for d in dims)]
        for step in range(len(found.free.actions_HD))
        for name, values_HD in parts.items()
    ]
    return {"headers": ["step", "answer", *(f"dim {d}" for d in dims)], "data": rows}


def _words(found: Answers) -> str:
    text = found.free.text or "(no text)"
    if found.difference_HD is None:
        return text
    largest = float(np.abs(found.difference_HD).max())
    return f"{text}\n\nSteered, the actions change by up to {largest:.4f}."


def _with_trace(rgb_HWC: Rgb, chunk: ActionChunk) -> Rgb:
    return rgb_HWC if chunk.trace_P2 is None else draw_trace(rgb_HWC, chunk.trace_P2)


def _told(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or the user's mistake and the model's failure as a message on the page."""
    try:
        return function(*arguments)
    except (UserError, PredictionFailed) as error:
        raise gr.Error(str(error)) from error
