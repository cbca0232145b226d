"""Pictures with their prompts below them, for readers.

Axes: N pictures, H height, W width.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE = 13  # of Pillow's built-in font, in pixels
LINE = FONT_SIZE + 4  # pixels from one line to the next
MARGIN = 6  # pixels around each picture with its caption
PAPER, INK = (255, 255, 255), (40, 40, 40)


def captioned_grid(images: np.ndarray, captions: Sequence[str], per_row: int, scale: int = 1) -> np.ndarray:
    """uint8 [N, H, W, 3] and N captions -> one picture, `per_row` side by side, each caption wrapped under its own.

    `scale` repeats the pictures' pixels; a caption is as wide as its picture then.
    """
    if len(images) != len(captions) or len(images) == 0:
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures; expected one each, and at least one")
    if per_row < 1 or scale < 1:
        raise ValueError(f"per_row {per_row} and scale {scale}: must be at least 1")
    font = ImageFont.load_default(size=FONT_SIZE)
    shown = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = shown.shape
    columns = min(per_row, count)
    lines = [wrapped(caption, width, font.getlength) for caption in captions]
    # A row is as high as its longest caption needs.
    highs = [height + LINE * max(map(len, lines[i : i + columns])) + 2 * MARGIN for i in range(0, count, columns)]
    sheet = Image.new("RGB", (columns * (width + 2 * MARGIN), sum(highs)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, image in enumerate(shown):
        row, column = divmod(i, columns)
        left, top = column * (width + 2 * MARGIN) + MARGIN, sum(highs[:row]) + MARGIN
        sheet.paste(Image.fromarray(image), (left, top))
        for place, line in enumerate(lines[i]):
            pen.text((left, top + height + 2 + place * LINE), line, INK, font)
    return np.asarray(sheet)


def wrapped(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    """The text's words in lines of at most `width`, as `length` measures; a word that is too long is cut."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}" if line else word
        if length(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        line = ""
        for letter in word:
            if line and length(line + letter) > width:
                lines.append(line)
                line = ""
            line += letter
    return [*lines, line] if line else lines
