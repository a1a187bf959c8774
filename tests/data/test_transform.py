"""Frames of any aspect, from file to model: as sharp as their short side, upright, cut where their boxes are."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from media_files import read_numbers, write_media

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec, center_boxes, cut_boxes
from avmae.data.datamodule import BatchTransform
from avmae.data.dataset import ClipDataset, Sample, collate
from avmae.data.decode.window import frame_size, read_window
from avmae.data.read import read_clip
from avmae.data.sampling import Request
from avmae.data.splits import ClipEntry

CLIP = ClipSpec(frames=8, stride=2, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
SIZES = {"portrait": (640, 360), "film": (360, 860), "television": (360, 640), "UCF101": (240, 320)}


def write_stripes(path: Path, size: tuple[int, int], along: int) -> Path:
    """Stripes across an axis (0: rows), each a 120th of the short side: 4 pixels of a pair in a 240 px frame."""
    height, width = size
    place = np.arange(size[along]) * 120 // min(size) % 2 * 200 + 25
    rows = place[:, None] if along == 0 else place[None]
    image = np.broadcast_to(rows[..., None], (height, width, 3)).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", 25, options={"qmin": "1", "qmax": "1"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuvj444p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("along", [0, 1])
@pytest.mark.parametrize("name", SIZES)
def test_a_fine_pattern_survives_whatever_the_aspect(name: str, along: int, tmp_path: Path) -> None:
    video = read_clip(write_stripes(tmp_path / "a.avi", SIZES[name], along), CLIP)["video"][0, 0, 0]
    lines = video.mean(1 - along)
    # 120 stripes in the square: 60 periods, at an amplitude of half of 200 / 255 before any scaling.
    spectrum = torch.fft.rfft(lines - lines.mean()).abs() / len(lines) * 2
    assert int(spectrum.argmax()) == 60
    assert spectrum.max() > 0.35
    assert video.std(along).min() > 10 * video.std(1 - along).max()


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("size", [(160, 96), (96, 230), (96, 160)])
def test_frames_are_upright_and_boxes_where_they_were_drawn(
    size: tuple[int, int], rotation: int, tmp_path: Path
) -> None:
    path = write_media(tmp_path / "a.mp4", frames=40, size=size, video="libx264", audio=None, rotation=rotation)
    shown, kept = (read_window(path, CLIP, 0.5, canvas) for canvas in (None, CLIP.canvas))
    assert shown.aspect == kept.aspect
    if not rotation:
        assert read_numbers(shown.frames) == read_numbers(kept.frames)
    dataset = ClipDataset([ClipEntry(path, 0)], CLIP, False, segments=1, crops=3)
    # Beside another aspect, frames are padded.
    wide = write_media(tmp_path / "b.mp4", frames=40, size=(96, 300), audio=None)
    dataset.entries = [*dataset.entries, ClipEntry(wide, 1)]
    for requests in ([Request(0)], [Request(0), Request(1)]):
        views = BatchTransform(CLIP)(collate([dataset[request] for request in requests]))["video"][:3]
        boxes = torch.tensor([center_boxes(shown.aspect, 3)])
        expected = cut_boxes(torch.from_numpy(shown.frames)[None], boxes, torch.tensor([False]), CLIP.size)
        assert (views - expected).abs().mean() < 0.02


def test_random_boxes_of_portrait_frames_are_cut_and_mirrored_upright(tmp_path: Path) -> None:
    path = write_media(tmp_path / "a.mp4", frames=40, size=(160, 96), video="libx264", audio=None)
    entries, request = [ClipEntry(path, 0)], Request(0, (5,))
    samples: list[Sample] = []
    for flip in (0.0, 1.0):
        dataset = ClipDataset(entries, CLIP, False, AugmentSpec(scale=(0.3, 0.3), flip=flip))
        samples.append(collate([dataset[request]]))
    plain, mirrored = (
        cut_boxes(sample["frames"], sample["boxes"], sample["portrait"], CLIP.size) for sample in samples
    )
    assert (plain.flip(-1) - mirrored).abs().max() < 1e-3
    assert (plain.flip(-2) - mirrored).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(4 / 3, (240, 320)), (9 / 16, (426, 240)), (2.39, (240, 574)), (1.0, (240, 240)), (30, (240, 960))],
)
def test_the_short_side_is_the_canvas(aspect: float, size: tuple[int, int]) -> None:
    assert frame_size(aspect, ClipSpec().canvas) == size
