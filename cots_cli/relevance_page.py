"""Pictures with the maps of texts and words on them, for `cots explain`.

Shape letters: h and w patches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cots_model.explainer import heated

_HEIGHT, _MAX_WIDTH, _MARGIN, _FONT_SIZE = 320, 960, 12, 15  # a panorama is squashed
_LINE = 22
_COLUMNS = 5


@dataclass(frozen=True)
class Tile:
    """One map, and the two lines below it."""

    patch_hw: Tensor
    title: str
    note: str


def draw(base: Image.Image, tiles: Sequence[Tile]) -> Image.Image:
    """The picture, and beside it once more for each tile, under a map from dark to bright."""
    width = min(round(base.width * _HEIGHT / base.height), _MAX_WIDTH)
    photo = base.convert("RGB").resize((max(1, width), _HEIGHT))
    across, down = max(photo.width, 220) + _MARGIN, _HEIGHT + _MARGIN + 2 * _LINE
    columns = min(len(tiles) + 1, _COLUMNS)
    rows = math.ceil((len(tiles) + 1) / columns)
    size = (across * columns + _MARGIN, down * rows + _MARGIN)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(photo, (_MARGIN, _MARGIN))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for place, tile in enumerate(tiles, start=1):
        row, column = divmod(place, columns)
        left, top = _MARGIN + column * across, _MARGIN + row * down
        sheet.paste(heated(photo, tile.patch_hw), (left, top))
        lines = ((tile.title, "black"), (tile.note, "gray"))
        for number, (text, color) in enumerate(lines):
            where = (left, top + _HEIGHT + 4 + number * _LINE)
            pen.text(where, _shortened(text, font, across - _MARGIN), color, font=font)
    return sheet


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
