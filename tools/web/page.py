"""The page: what the controls are, and what they set going."""

import contextlib
import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from mask2former.errors import UserError
from mask2former.inference import Options
from mask2former.inference.predictor import INSTANCE_SCORE

from .segmenting import Limits, Segmenter, write_zip
from .viewer import EMPTY, html_of, message, viewer

TASKS = {
    "panoptic": ("Everything", "each thing by itself, and all that surrounds them (panoptic)"),
    "instance": ("Single things", "these alone, and they may overlap (instance)"),
    "semantic": ("Classes", "all of one class is one (semantic)"),
}
MOST_SESSIONS = 100  # gradio keeps the last answer of each, a megabyte or so, for an hour or more
CSS = """
#samples, #samples .grid-wrap { height: auto; min-height: 0; max-height: none; }
#samples .grid-wrap { padding-top: 2rem; overflow: hidden; }
#samples .grid-container { grid-template-columns: repeat(6, 1fr); grid-auto-rows: auto; gap: 6px; }
#samples .thumbnail-lg { width: 100%; height: auto; aspect-ratio: 1; }
"""
BROKEN = "Something went wrong here; it is not your picture's fault. The server's log says more."


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How the page is served.

    Attributes:
        host: interface to listen at; ``127.0.0.1`` is this machine alone.
        port: None: the first free one from 7860 on.
        most_waiting: requests in the queue; further ones are asked to come back.
        keep_seconds: uploads and results are deleted about as long after.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    most_waiting: int = 64
    keep_seconds: int = 900


@contextlib.contextmanager
def serve(
    segmenter: Segmenter, serving: Serving, title: str, samples: Sequence[Path] = ()
) -> Iterator[str]:
    """Serve the page inside the block; gives its address. All files are deleted at the end.

    Args:
        samples: pictures to pick in place of an upload.

    Raises:
        UserError: the port is taken.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="mask2former_web_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(segmenter, serving, title, samples)
        try:
            yield launch(page, segmenter.limits, serving, samples)
        finally:
            page.close(verbose=False)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def launch(page: gr.Blocks, limits: Limits, serving: Serving, samples: Sequence[Path]) -> str:
    """Start the server in a thread of its own; its address."""
    try:
        _, url, _ = page.launch(
            server_name=serving.host,
            server_port=serving.port,
            max_file_size=limits.bytes,
            state_session_capacity=MOST_SESSIONS,
            theme=theme(),
            css=CSS,
            footer_links=[],
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            allowed_paths=[str(sample.resolve()) for sample in samples],
        )
    except (OSError, OverflowError) as error:  # a port beyond 65535
        raise UserError(f"--host {serving.host} --port {serving.port}: {error}") from error
    return url


def theme() -> gr.themes.Base:
    """gradio's own with the system's fonts (others are fetched), and fine print that is legible."""
    base = gr.themes.Default(
        primary_hue="blue",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    return base.set(
        body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400"
    )


def build_page(
    segmenter: Segmenter, serving: Serving, title: str, samples: Sequence[Path]
) -> gr.Blocks:
    """The page, not launched."""
    options = segmenter.predictor.options
    first = options.tasks[0]
    keep = serving.keep_seconds
    page = gr.Blocks(title=title, analytics_enabled=False, delete_cache=(max(1, keep // 10), keep))
    with page:
        gr.Markdown(f"# {title}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                picture = picture_input(segmenter.limits)
                gallery = sample_gallery(samples) if samples else None
                task = task_input(options.tasks)
                score, overlap, *others = option_inputs(options, least_score(segmenter, first))
                button = gr.Button("Segment", variant="primary")
            with gr.Column(scale=3, min_width=420):
                shown = viewer()
                download = gr.DownloadButton("Download the results (zip)", interactive=False)

        request: dict[str, Any] = {
            "fn": request_handler(segmenter),
            "inputs": [picture, task, score, overlap, *others],
            "outputs": [shown, download],
            "concurrency_id": "model",
            "concurrency_limit": 1,  # two at a time would only take the processor from each other
            "show_progress_on": shown,
        }
        events = [picture.input, picture.clear, button.click]
        events += [control.input for control in (score, overlap, *others)]
        # A slider moves faster than a model: what it passes on its way is left out.
        gr.on(events, trigger_mode="always_last", api_name="segment", **request)
        task.input(
            lambda name: (
                gr.Slider(value=least_score(segmenter, name), interactive=name != "semantic"),
                gr.Slider(interactive=name == "panoptic"),
            ),
            task,
            [score, overlap],
            queue=False,
            api_visibility="private",
        ).then(api_visibility="private", **request)
        if gallery is not None:
            chosen = gallery.select(
                sample_picker(samples), None, picture, queue=False, api_visibility="private"
            )
            chosen.then(api_visibility="private", **request)
    return page.queue(max_size=serving.most_waiting, api_open=False)


def picture_input(limits: Limits) -> gr.Image:
    """An upload whose value is the path of the file as it was sent."""
    picture = gr.Image(
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard"],
        label=f"Picture of at most {limits.bytes / 2**20:g} MB and {limits.pixels:,} pixels",
        height=240,
        buttons=[],
    )
    # gradio would have Pillow open the file, of whatever format, before the limits are checked,
    # and fetch what is named by an address, of whatever size and from wherever.
    picture.preprocess = lambda upload: upload.path if upload else None
    keep = picture.async_move_resource_to_block_cache

    async def keep_uploads_only(path: str | Path | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gr.Error("Addresses are not fetched: upload the picture.", print_exception=False)
        return await keep(path)

    picture.async_move_resource_to_block_cache = keep_uploads_only
    return picture


def sample_gallery(samples: Sequence[Path]) -> gr.Gallery:
    return gr.Gallery(
        [str(path) for path in samples],
        label="Or pick a sample",
        columns=6,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="samples",
    )


def sample_picker(samples: Sequence[Path]) -> Callable[[gr.SelectData], str]:
    def pick(event: gr.SelectData) -> str:
        return str(samples[event.index])

    return pick


def task_input(tasks: Sequence[str]) -> gr.Radio:
    labels = [TASKS[name] for name in tasks]
    return gr.Radio(
        [(label, name) for (label, _), name in zip(labels, tasks)],
        value=tasks[0],
        label="Find",
        info=" ".join(f"{label}: {meaning}." for label, meaning in labels),
    )


def least_score(segmenter: Segmenter, task: str) -> float:
    """Where the slider is at first: what the predictor takes without one."""
    if task == "panoptic":
        return segmenter.predictor.model.object_mask_threshold
    return INSTANCE_SCORE


def option_inputs(options: Options, score: float) -> list[gr.components.Component]:
    """Least score, overlap, least area, clean-up, colours."""
    inputs = [
        gr.Slider(
            0,
            1,
            score,
            step=0.01,
            label="Least score",
            info="How sure the model must be of a segment: higher shows fewer.",
            interactive=options.tasks[0] != "semantic",
        ),
        gr.Slider(
            0,
            1,
            options.overlap_threshold,
            step=0.01,
            label="Least visible part",
            info="A segment is dropped if surer ones cover more of it than this leaves.",
            interactive=options.tasks[0] == "panoptic",
        ),
    ]
    with gr.Accordion("More", open=False):
        inputs += [
            gr.Number(
                options.minimum_area,
                label="Least size",
                info="Segments of fewer pixels are dropped.",
                precision=0,
                minimum=0,
            ),
            gr.Number(
                options.clean_up,
                label="Clean up",
                info="Holes of fewer pixels are filled, islands of fewer removed.",
                precision=0,
                minimum=0,
            ),
            gr.Checkbox(label="Colours that everyone can tell apart"),
        ]
    return inputs


def request_handler(segmenter: Segmenter) -> Callable[..., Iterator[tuple[str, gr.DownloadButton]]]:
    def handle(
        path: str | None,
        task: str,
        score: float,
        overlap: float,
        area: int,
        clean_up: int,
        color_blind: bool,
    ) -> Iterator[tuple[str, gr.DownloadButton]]:
        """The viewer's contents and the zip, or a message in their place."""
        nothing = gr.DownloadButton(value=None, interactive=False)
        if path is None:
            yield EMPTY, nothing
            return
        try:
            options = Options(
                tasks=(task,),
                score_threshold=score,
                overlap_threshold=overlap,
                minimum_area=area or 0,
                clean_up=clean_up or 0,
                most_instances=segmenter.predictor.options.most_instances,
            )
            result = segmenter(Path(path), options, color_blind=color_blind)
            # gradio copies the file into its cache before it goes on here.
            with tempfile.TemporaryDirectory() as folder:
                archive = write_zip(result, segmenter.predictor, Path(folder))
                yield html_of(result), gr.DownloadButton(value=str(archive), interactive=True)
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc(file=sys.stderr)
            text = str(error) if isinstance(error, UserError) else BROKEN
            yield message(text), nothing
        finally:
            # Matplotlib's figures are cycles, which without this would wait by the hundred.
            gc.collect()

    return handle
