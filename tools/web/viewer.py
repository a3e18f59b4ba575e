"""A segmented picture as HTML: what viewer.js makes answer to the mouse and the keyboard."""

import base64
import io
from html import escape
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from .segmenting import Result, Row

HERE = Path(__file__).parent
EMPTY = "<p class='empty'>Choose a picture: its segments appear here.</p>"


def viewer() -> gr.HTML:
    """The component; its value is of :func:`html_of`.

    gradio's AnnotatedImage answers at its legend only, not in the picture.
    """
    return gr.HTML(
        EMPTY,
        css_template=(HERE / "viewer.css").read_text(),
        js_on_load=(HERE / "viewer.js").read_text(),
        apply_default_css=False,
        elem_id="viewer",
    )


def message(text: str) -> str:
    """What is shown in place of a picture."""
    return f"<p class='message' role='alert'>{escape(text)}</p>"


def html_of(result: Result) -> str:
    """The drawing, its label map (which segment a pixel belongs to), and the table."""
    height, width = result.labels.shape
    size = f"width='{width}' height='{height}'"
    label_bytes = np.zeros((height, width, 3), np.uint8)
    label_bytes[:, :, 0] = result.labels & 255
    label_bytes[:, :, 1] = result.labels >> 8
    rows = "".join(_row(number, row) for number, row in enumerate(result.rows, start=1))
    if not rows:
        rows = "<tr><td colspan='6'>Nothing was found: lower the least score.</td></tr>"
    count = f"{len(result.rows)} segment{'s' * (len(result.rows) != 1)}"
    prediction = result.prediction
    pixels = f"{prediction.width:,} × {prediction.height:,} pixels"
    return f"""
<div class="stage">
  <img class="drawing" {size} alt="Segments" src="{_url(result.drawing, "jpeg")}">
  <canvas {size}></canvas>
  <img class="labels" alt="" src="{_url(label_bytes, "png")}">
  <div class="tip"></div>
</div>
<p class="details" aria-live="polite">Point at a segment, here or in the table; click for more.</p>
<table>
  <caption>{count} in {pixels}, after {result.seconds:.2f} s</caption>
  <thead><tr>
    <th>Class</th><th>Kind</th><th>Score</th><th>Pixels</th><th>Share</th><th>Box</th>
  </tr></thead>
  <tbody>{rows}</tbody>
</table>"""


def _row(number: int, row: Row) -> str:
    name = escape(row.name)
    score = "–" if row.score is None else f"{row.score:.2f}"
    area, share = f"{row.area:,}", f"{row.share:.1%}"
    x0, y0, x1, y1 = row.box
    tip = name if row.score is None else f"{name} {score}"
    details = (
        f"{name} ({row.kind}): score {score}, area {area} pixels ({share}), "
        f"box from ({x0}, {y0}) to ({x1}, {y1})"
    )
    cells = "".join(
        f"<td>{cell}</td>"
        for cell in (name, row.kind, score, area, share, f"{x0}, {y0}, {x1}, {y1}")
    )
    return (
        f"<tr tabindex='0' data-number='{number}' data-tip='{tip}' data-details='{details}'>"
        f"{cells}</tr>"
    )


def _url(image: np.ndarray, kind: str) -> str:
    """(h, w, 3) uint8 RGB as a data URL: no file that would have to be deleted."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
