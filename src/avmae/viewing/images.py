"""Arrays to images that people look at: contact sheets, videos side by side, spectrograms, heat maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, MASKED = (32, 32, 36), (255, 255, 255), (128, 128, 128)
MARGIN, HEAD = 8, 28
ROW = 128
"""Height in pixels below which images of a contact sheet are enlarged by a whole factor."""


def pixels(video: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised (3, T, H, W) float to (T, H, W, 3) uint8; NaN, which stands for masked, becomes grey."""
    values = np.moveaxis(video, 0, -1) * np.asarray(std) + np.asarray(mean)
    colours = (values.clip(0, 1) * 255).round()
    return np.where(np.isnan(colours), MASKED, np.nan_to_num(colours)).astype(np.uint8)


def spectrogram_image(spectrogram: np.ndarray, low: float, high: float, height: int) -> np.ndarray:
    """(L, F) float, NaN where masked, to (height, W, 3) uint8: time runs right, frequency up, low to high brightens."""
    image = Image.fromarray(_magma((spectrogram.T[::-1] - low) / max(high - low, 1e-6)))
    width = max(1, round(image.width * height / image.height))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def error_frames(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean absolute difference over channels of (T, H, W, 3) uint8 pairs as colours; half of the range is brightest."""
    return _magma(np.abs(frames.astype(float) - truth).mean(-1) / 255 * 2)


def heat(frames: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Grey frames under a colour for each patch, dark to bright: (T, H, W, 3) uint8.

    Args:
        frames: (T, H, W, 3) uint8.
        levels: (T, h, w) in [0, 1], the brightest at 1; h divides H and w divides W.
    """
    rows, columns = (frames.shape[axis] // levels.shape[axis] for axis in (1, 2))
    colours = _magma(levels.repeat(rows, 1).repeat(columns, 2))
    return (0.35 * frames.mean(-1, keepdims=True) + 0.65 * colours).round().astype(np.uint8)


def magnify(frames: np.ndarray, height: int = 192) -> np.ndarray:
    """(..., H, W, 3) uint8 enlarged by a whole factor to at least a height."""
    factor = max(1, -(-height // frames.shape[-3]))
    return frames.repeat(factor, -3).repeat(factor, -2)


def contact_sheet(title: str, rows: Sequence[tuple[str, Sequence[np.ndarray]]], note: str = "") -> Image.Image:
    """Rows of images (H, W, 3) uint8 behind their labels, under a title, and a note below."""
    font, bold = ImageFont.load_default(15), ImageFont.load_default(20)
    left = int(max(font.getlength(label) for label, _ in rows)) + 2 * MARGIN
    # The whole factor that brings an image nearest to the height of a row.
    scaled = [[magnify(image, image.shape[0] * round(ROW / image.shape[0])) for image in images] for _, images in rows]
    width = left + max(sum(image.shape[1] + MARGIN for image in images) for images in scaled) + MARGIN
    width = max(width, int(max(bold.getlength(title), font.getlength(note))) + 2 * MARGIN)
    heights = [max(image.shape[0] for image in images) for images in scaled]
    sheet = Image.new("RGB", (width, 44 + sum(h + MARGIN for h in heights) + (30 if note else MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 10), title, INK, bold)
    top = 44
    for (label, _), images, height in zip(rows, scaled, heights, strict=True):
        draw.text((MARGIN, top + height / 2), label, INK, font, anchor="lm")
        for place, image in enumerate(images):
            sheet.paste(Image.fromarray(image), (left + sum(i.shape[1] + MARGIN for i in images[:place]), top))
        top += height + MARGIN
    draw.text((MARGIN, top), note, INK, font)
    return sheet


def side_by_side(panels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Videos (T, H, W, 3) uint8 next to each other under their labels, as one of the same kind."""
    labelled = []
    for label, frames in panels.items():
        frames = np.pad(magnify(frames), ((0, 0), (HEAD, 0), (0, MARGIN), (0, 0)), constant_values=255)
        head = Image.new("RGB", (frames.shape[2], HEAD), PAPER)
        ImageDraw.Draw(head).text((MARGIN, HEAD / 2), label, INK, ImageFont.load_default(15), anchor="lm")
        frames[:, :HEAD] = np.asarray(head)
        labelled.append(frames)
    return np.concatenate(labelled, 2)


def _magma(levels: np.ndarray) -> np.ndarray:
    """Levels from 0 to 1 as (..., 3) uint8 colours from dark to bright; NaN is grey."""
    # Here, for training imports this module and need not load matplotlib.
    from matplotlib import colormaps

    colours = colormaps["magma"].with_extremes(bad=[channel / 255 for channel in MASKED])
    return colours(np.ma.masked_invalid(levels), bytes=True)[..., :3]
