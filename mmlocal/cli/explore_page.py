"""The page of ``mmlocal explore``. No other module imports Gradio."""

from __future__ import annotations

import html
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI

from mmlocal.errors import UsageError
from mmlocal.visualization.explorer import Choice, Explorer, Reading, View, describe_input
from mmlocal.visualization.explorer_maps import enlargement, mark_pixel
from mmlocal.visualization.explorer_pictures import (
    Photograph,
    TemporaryFiles,
    encode_png,
    example_pictures,
    pack_pictures,
    read_photograph,
)

_MEAN = -1  # entry of the lists of heads and queries
_LARGEST_FILE = "64mb"
_KEPT = 3600  # seconds after which the pictures of a visitor are forgotten
_MOST_VISITORS = 32  # whose pictures are remembered

_CSS = """
.notice {padding: .6em .9em; border-radius: .5em; border: 1px solid; overflow-wrap: anywhere}
.notice.weights {background: #fff7d6; color: #5c4400; border-color: #e0b400}
.notice.error {background: #fde8e8; color: #8a1010; border-color: #d33}
#input img {cursor: crosshair; image-rendering: pixelated}
.caption {font-size: .9em; overflow-wrap: anywhere}
footer {display: none !important}
"""
_RANDOM = """
<div class="notice weights"><b>The weights are random</b>, because no checkpoint was given. The
network has learned nothing: its predictions mean nothing, and its attention is nearly even.</div>
"""


@dataclass(frozen=True)
class Visit:
    """The picture, layer and pixel of one visitor. Each event makes a new object.

    Args:
        view: the picture.
        reading: the attention of the chosen layer to it.
        pixel: x and y of the chosen pixel.
        chosen: values of the other controls.
    """

    view: View
    reading: Reading
    pixel: tuple[int, int]
    chosen: tuple = ()


class Page:
    """The components of the page, and what happens when a visitor uses them.

    Args:
        explorer: makes the pictures.
        folder: folder for files that visitors may save.
        examples: name of each example -> ``(h, w, 3)`` uint8 in RGB.
        max_side: photographs are scaled down to this width and height, in pixels.
    """

    def __init__(
        self, explorer: Explorer, folder: Path, examples: dict[str, np.ndarray], max_side: int
    ) -> None:
        self.explorer = explorer
        self.files = TemporaryFiles(folder / "shown", _KEPT)
        self.examples = examples
        self.max_side = max_side

    def lay_out(self, title: str, weights: str | None) -> None:
        """Make the components. Call this in the context of a ``gr.Blocks``."""
        layers = [
            (f"{name.removeprefix('backbone.')} ({kind})", name)
            for name, kind in self.explorer.layers.items()
        ]
        tasks = list(self.explorer.network.tasks)
        gr.Markdown(f"## What does `{title}` look at?")
        known = f'<div class="caption">Weights: {html.escape(weights or "")}</div>'
        gr.HTML(known if weights else _RANDOM, elem_id="weights")
        self.message = gr.HTML(visible=False, elem_id="message")
        self.visit = gr.State(None, time_to_live=_KEPT)
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("**Drop a photograph**, or tap to choose one")
                self.file = gr.File(
                    file_types=["image"], show_label=False, height=150, elem_id="file"
                )
                self.note = gr.Markdown(elem_id="note", elem_classes="caption")
            with gr.Column(min_width=280):
                gr.Markdown("**Or pick an example**")
                self.gallery = gr.Gallery(
                    self._thumbnails,
                    show_label=False,
                    columns=3,
                    height=270,
                    object_fit="cover",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    elem_id="examples",
                )
            with gr.Column(min_width=280):
                gr.Markdown("**Prediction**")
                self.prediction = _picture("prediction", height=270)
        with gr.Row():
            self.layer = _list("Layer", "layer", layers, visible=True, scale=2)
            self.head = _list("Head", "head", [("all", _MEAN)])
            self.query = _list("Query", "query", [("all", _MEAN)])
            self.task = _list("Task of the pixel", "task", [(task, task) for task in tasks])
            self.ghost = gr.Checkbox(
                label="filter after the ghost head", visible=False, min_width=200, elem_id="ghost"
            )
        with gr.Row():
            with gr.Column(min_width=280):
                gr.Markdown("**The network's input: click a pixel**")
                self.image = _picture("input", ["fullscreen"])
            with gr.Column(min_width=280) as self.pixel_column:
                gr.Markdown("**Where the pixel looks**")
                self.pixel = _picture("pixel")
            with gr.Column(min_width=280) as self.close_up_column:
                gr.Markdown("**Close-up**")
                self.close_up = _picture("close_up")
            with gr.Column(min_width=280) as self.received_column:
                gr.Markdown("**Where all pixels look**")
                self.received = _picture("received")
        self.save = gr.DownloadButton("Save the pictures (ZIP)", interactive=False, elem_id="save")
        self.choices = [self.layer, self.head, self.query, self.ghost, self.task]
        self.outputs = [
            *(self.message, self.visit, self.file, self.image, self.note, self.prediction),
            *(self.head, self.query, self.task, self.ghost),
            *(self.pixel, self.close_up, self.received, self.save),
            *(self.pixel_column, self.close_up_column, self.received_column),
        ]

    def connect(self, page: gr.Blocks) -> None:
        """Say what happens when a visitor uses the components."""
        inputs = [self.visit, *self.choices]
        for event, function, first in (
            (page.load, self.begin, []),
            (self.file.upload, self.upload, [self.file]),
            (self.gallery.select, self.pick, []),
            (self.image.select, self.click, []),
        ):
            _listen(event, function, [*first, *inputs], self.outputs)
        for changed in (
            self.layer.input,
            self.head.input,
            self.query.input,
            self.ghost.input,
            self.task.input,
        ):
            _listen(changed, self.change, inputs, self.outputs)

    def _thumbnails(self) -> list[tuple[np.ndarray, str]]:
        return [(picture, name) for name, picture in self.examples.items()]

    # ------------------------------------------------------------------------------- events

    def begin(self, visit: Visit | None, *chosen: Any) -> dict:
        """Show the first example."""
        return self._reported(lambda: self._open(self._example(0), *chosen))

    def upload(self, path: str | None, visit: Visit | None, *chosen: Any) -> dict:
        """Show a file of the visitor. The drop area becomes free again."""

        def show() -> dict:
            if path is None:
                raise UsageError("no file has arrived; choose it again")
            return self._open(read_photograph(path, self.max_side), *chosen)

        return {self.file: None, **self._reported(show)}

    def pick(self, event: gr.SelectData, visit: Visit | None, *chosen: Any) -> dict:
        """Show an example."""
        return self._reported(lambda: self._open(self._example(event.index), *chosen))

    def click(self, event: gr.SelectData, visit: Visit | None, *chosen: Any) -> dict:
        """Show another pixel."""

        def show() -> dict:
            old = _present(visit)
            size = old.view.image.shape[:2]
            factor = enlargement(size)
            x, y = (
                min(max(int(part) // factor, 0), side - 1)
                for part, side in zip(event.index, size[::-1], strict=True)
            )
            return self._draw(replace(old, pixel=(x, y)), *chosen)

        return self._reported(show)

    def change(self, visit: Visit | None, *chosen: Any) -> dict:
        """Show another layer, head, query or task.

        A list tells again what it shows when it loses the focus. Then nothing is to be done.
        """

        def show() -> dict:
            old = _present(visit)
            return {self.visit: old} if old.chosen == chosen else self._draw(old, *chosen)

        return self._reported(show)

    # ------------------------------------------------------------------------------ pictures

    def _example(self, index: int) -> Photograph:
        name, picture = list(self.examples.items())[index]
        return Photograph(name, picture, picture.shape[:2])

    def _open(self, photograph: Photograph, layer: str, *chosen: Any) -> dict:
        view, reading = self.explorer.open(photograph, layer)
        height, width = view.seen_size
        visit = Visit(view, reading, (width // 2, height // 2))
        note = describe_input(view, self.explorer.network.steps)
        return {
            self.note: html.escape(note),
            self.prediction: self.files.write("prediction.png", encode_png(view.prediction)),
            **self._draw(visit, layer, *chosen),
        }

    def _draw(
        self, visit: Visit, layer: str, head: int, query: int, ghost: bool, task: str | None
    ) -> dict:
        reading = visit.reading
        if reading.layer != layer:
            reading = self.explorer.read(visit.view, layer)
        head = head if head < reading.heads else _MEAN
        query = query if query < reading.queries else _MEAN
        visit = replace(visit, reading=reading, chosen=(layer, head, query, ghost, task))
        choice = Choice(
            visit.pixel,
            head=None if head == _MEAN else head,
            query=None if query == _MEAN else query,
            ghost=ghost,
            task=task,
        )
        pictures = self.explorer.draw(visit.view, reading, choice)
        files = {kind: encode_png(picture) for kind, picture in pictures.items()}
        paths = {
            kind: self.files.write(f"attention_{kind}.png", data) for kind, data in files.items()
        }
        marked = encode_png(mark_pixel(visit.view.image, visit.pixel))
        saved = {
            "input.png": marked,
            "prediction.png": encode_png(visit.view.prediction),
            **{f"attention_{kind}.png": data for kind, data in files.items()},
        }
        name = re.sub(r"[^\w.-]+", "_", f"{visit.view.photograph.name}_{layer}")
        between_tasks = reading.attention is None
        return {
            self.message: gr.update(value="", visible=False),
            self.visit: visit,
            self.image: self.files.write("input.png", marked),
            self.head: _choices(reading.heads, head, "all heads", "head"),
            self.query: _choices(reading.queries, query, "all queries", "query"),
            self.task: gr.update(visible=between_tasks),
            self.ghost: gr.update(visible=reading.has_ghost),
            self.pixel: paths["pixel"],
            self.close_up: paths.get("close_up"),
            self.received: paths.get("received"),
            self.pixel_column: gr.update(scale=3 if between_tasks else 1),
            self.close_up_column: gr.update(visible=not between_tasks),
            self.received_column: gr.update(visible=not between_tasks),
            self.save: gr.update(
                value=self.files.write(f"{name}.zip", pack_pictures(saved)), interactive=True
            ),
        }

    def _reported(self, show: Callable[[], dict]) -> dict:
        """Call ``show``; an error becomes the message of the page, and all else stays."""
        try:
            return show()
        except UsageError as error:
            text = str(error)
        except Exception as error:  # the page goes on, and the terminal shows the reason
            traceback.print_exc()
            text = f"This failed: {error}. The terminal of `mmlocal explore` shows more."
        notice = f'<div class="notice error" role="alert">{html.escape(text)}</div>'
        return {self.message: gr.update(value=notice, visible=True)}


def build_page(
    explorer: Explorer,
    title: str,
    weights: str | None,
    folder: Path,
    first_example: str,
    max_side: int,
) -> gr.Blocks:
    """Build the page.

    Args:
        explorer: makes the pictures.
        title: name of the config.
        weights: name of the checkpoint; ``None`` for random weights.
        folder: folder for files that visitors may save.
        first_example: name of the example that is shown first.
        max_side: photographs are scaled down to this width and height, in pixels.
    """
    # Gradio removes its copies of the files of old visits.
    with gr.Blocks(
        title=f"{title}: attention", analytics_enabled=False, delete_cache=(_KEPT // 6, _KEPT)
    ) as blocks:
        page = Page(explorer, folder, example_pictures(first_example), max_side)
        page.lay_out(title, weights)
        page.connect(blocks)
    return blocks


def application(blocks: gr.Blocks) -> FastAPI:
    """Make an ASGI application of a page.

    Args:
        blocks: what :func:`build_page` returned.
    """
    blocks.queue(api_open=False)
    blocks.has_launched = True  # else it opens any file of this machine that a request names
    blocks.state_session_capacity = _MOST_VISITORS
    return gr.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks,
        path="/",
        theme=gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css=_CSS,
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=_LARGEST_FILE,
    )


def _listen(event: Any, function: Callable, inputs: list, outputs: list) -> None:
    """Call a function on an event, one call at a time for all visitors."""
    event(
        function,
        inputs,
        outputs,
        concurrency_id="network",
        concurrency_limit=1,
        api_visibility="private",
        show_progress="minimal",
    )


def _picture(name: str, buttons: list | None = None, height: int | None = None) -> gr.Image:
    return gr.Image(
        type="filepath",
        format="png",
        height=height,
        show_label=False,  # Gradio writes labels onto the picture
        interactive=False,
        buttons=["download", "fullscreen"] if buttons is None else buttons,
        elem_id=name,
    )


def _list(
    label: str, name: str, entries: list[tuple], visible: bool = False, scale: int | None = None
) -> gr.Dropdown:
    return gr.Dropdown(
        entries,
        value=entries[0][1] if entries else None,
        label=label,
        filterable=False,
        visible=visible,
        min_width=200,
        scale=scale,
        elem_id=name,
    )


def _choices(number: int, value: int, all_of_them: str, one: str) -> dict:
    """A list of heads or queries, which shows only where there is a choice."""
    entries = [(f"mean of {all_of_them}", _MEAN), *((f"{one} {i}", i) for i in range(number))]
    return gr.update(choices=entries, value=value, visible=number > 1)


def _present(visit: Visit | None) -> Visit:
    if visit is not None:
        return visit
    raise UsageError("this page has forgotten your picture; choose it again")
