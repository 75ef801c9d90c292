"""Erase and restore: a picture, drawn or uploaded, and a model's completions of its hole.

On the pad black is ink and red is the hole.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio.utils import LRUCache
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from mnist_transformer.data import DataSpec, pictures
from mnist_transformer.models import inpaint
from mnist_transformer.models.base import GenerativeModel
from mnist_transformer.utils import images
from mnist_transformer.utils.classes import class_of
from mnist_transformer.web import shelf
from mnist_transformer.web.dials import dials, for_model, read, refit
from mnist_transformer.web.gate import MAX_PAD_PIXELS

PAD = 280  # pixels, its height and width
INK_COLOR, HOLE_COLOR = "#000000", "#e02020"
PAINTED = "painted red"
UNKNOWN = "unknown"
NUM_COMPLETIONS = 8
SHEET_SCALE = 6


class Blobs(LRUCache):
    """The pad's pictures of the last requests, each read twice: to check it, and to draw."""

    def pop(self, key: str) -> Any:
        return self[key]


def build(models: Mapping[str, GenerativeModel]) -> shelf.Example:
    """Add the tab's parts to the page."""
    gr.Markdown(
        "Draw in black or upload a picture. Then choose the part to erase, or paint over "
        "it in red: the palette at the left of the pad has both colours."
    )
    white = Image.new("RGB", (PAD, PAD), "white")
    with gr.Row():
        with gr.Column(min_width=420):
            pad = gr.ImageEditor(
                white,
                label="Picture",
                type="pil",
                sources=(),
                transforms=(),
                layers=False,
                brush=gr.Brush(20, [INK_COLOR, HOLE_COLOR], INK_COLOR, "fixed"),
                canvas_size=(PAD, PAD),
                fixed_canvas=True,
                format="png",
                buttons=[],
                elem_id="pad",
            )
            pad.blob_storage = Blobs()
            with gr.Row():
                upload = gr.UploadButton("Upload a picture", file_types=["image"], elem_id="upload")
                blank = gr.Button("Blank picture", elem_id="blank")
            parts = [PAINTED, *inpaint.HOLES[:-1]]
            hole = gr.Radio(parts, value=PAINTED, label="Erase", elem_id="hole")
        with gr.Column(min_width=320):
            # Prefer a model that can also say which digit it may be.
            default = max(models, key=lambda name: models[name].likelihood == "exact")
            model = models[default]
            chosen = gr.Dropdown(list(models), value=default, label="Model")
            label = gr.Dropdown([UNKNOWN, *model.class_names], value=UNKNOWN, label="It is a")
            start, cancel = shelf.buttons("Restore")
            knobs = dials([model], keeping=True)
    notes = gr.Markdown(elem_id="posterior")
    title = f"The picture, what was erased, {NUM_COMPLETIONS} completions"
    sheet = gr.Image(label=title, elem_classes="restored", **shelf.PICTURE)

    def show(path: str, chosen: str) -> Image.Image:
        return read_upload(Path(path), models[chosen].config.data)

    def fit(chosen: str) -> list[dict[str, Any]]:
        model = models[chosen]
        names = gr.update(choices=[UNKNOWN, *model.class_names], value=UNKNOWN)
        return [names, *refit([model], keeping=True)]

    def example() -> shelf.Drawing:
        # A picture that the model draws, with its lower right painted over.
        known = class_of(shelf.first_class(model.class_names), model.class_names)
        opened = on_pad(model.sample([known], [0])[0], model.config.data)
        ImageDraw.Draw(opened).line([(130, 190), (220, 170)], fill=HOLE_COLOR, width=60)
        request = models, default, {"composite": opened}, PAINTED, UNKNOWN
        for note, sheets in restore(*request, *(knob.value for knob in knobs)):
            yield note, []
        yield note, [*sheets, opened]  # once: every picture resets the pad

    inputs, first = [chosen, pad, hole, label, *knobs], shelf.Example(example, [notes, sheet, pad])
    shelf.wire([start.click], cancel, partial(restore, models), inputs, [notes, sheet], first)
    # After a bad upload, a progress display would end as an error that covers the pad.
    upload.upload(show, [upload, chosen], pad, **shelf.QUIET)
    blank.click(lambda: white, None, pad, **shelf.QUIET)
    chosen.change(fit, chosen, [label, *knobs[1:]], **shelf.QUIET)
    return first


def on_pad(image: Tensor, data: DataSpec) -> Image.Image:
    """An image as the pad shows it, ink black on white."""
    shown = images.grid((255 - image if data.is_ink else image)[None], columns=1)
    return shown.convert("RGB").resize((PAD, PAD), Image.Resampling.NEAREST)


def read_upload(path: Path, data: DataSpec) -> Image.Image:
    """An uploaded picture as the pad shows it; ValueError for another file."""
    try:
        image, _ = pictures.to_image_of(data, pictures.open_picture(path)[0], str(path))
    except ValueError as error:  # the user knows the file by its name only
        raise ValueError(str(error).replace(str(path), path.name)) from error
    return on_pad(image, data)


def read_pad(pad: dict | None, data: DataSpec) -> tuple[Tensor, Tensor]:
    """The pad's picture uint8 (C, H, W), and bool (1, H, W): where it is not painted red."""
    if pad is None or pad["composite"] is None:
        raise ValueError("the pad is blank, expected a picture")
    if math.prod(pad["composite"].size) > MAX_PAD_PIXELS:  # which no page of ours sends
        raise ValueError(f"the pad has over {MAX_PAD_PIXELS:,} pixels, expected fewer")
    levels = np.array(pictures.laid_on("white", pad["composite"])).astype(int)
    if data.is_ink:
        red = (levels[..., 0] - levels[..., 1:].max(-1)) > 60
    else:  # a photograph has other reds
        red = abs(levels - ImageColor.getrgb(HOLE_COLOR)).max(-1) < 20
    levels[red] = 255
    image, _ = pictures.to_image_of(data, Image.fromarray(levels.astype(np.uint8)), "the pad")
    hidden = Image.fromarray((red * 255).astype(np.uint8))
    return image, pictures.to_mask(hidden, data.shape[-1])


def restore(
    models: Mapping[str, GenerativeModel],
    chosen: str,
    pad: dict | None,
    hole: str,
    label: str,
    *values: Any,
) -> shelf.Drawing:
    """Yield a note and a sheet of the chosen model's completions, again and again as it draws.

    An empty pad, no hole, and a number out of its range raise ValueError.
    """
    model = models[chosen]
    image, keep = read_pad(pad, model.config.data)
    if hole != PAINTED:
        keep = keep & inpaint.hole(hole, model.image_shape[-1])
    if keep.all():
        raise ValueError("nothing is erased: paint over a part in red or choose one")
    known = None if label == UNKNOWN else class_of(label, model.class_names)
    first, wanted = read(values)
    how, note = for_model(model, wanted, "This model")
    drawn = inpaint.complete(model, image, keep, NUM_COMPLETIONS, known, first, how)

    def stream() -> shelf.Drawing:
        for (canvas,) in shelf.together([drawn]):
            sheet = images.enlarge(inpaint.sheet(image, keep, canvas, columns=5), SHEET_SCALE)
            yield note, [sheet]
        if known is None and (guess := inpaint.likeliest(model, canvas)):
            yield f"{note} It may be a {guess}".strip(), [sheet]

    return stream()
