"""Degraded video and audio, made on the device from whole batches: tests whether one modality helps the other."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from avmae.errors import InputError

REFERENCE_SIZE = 224
"""Height of a frame, in pixels, in which `blur` and `motion` are stated; at other sizes they shrink or grow with it."""

SEVERITIES: dict[str, tuple[float, ...]] = {
    "lowres": (2, 4, 8),  # factor by which the frame is scaled down by area, then up again bilinearly
    "blur": (2, 4, 8, 16),  # standard deviation of a Gaussian, in pixels of a 224 px frame
    "motion": (8, 16, 32),  # length of a straight smear, in pixels of a 224 px frame; one direction for each clip
    "jpeg": (30, 10, 3),  # quality at which each frame is compressed, 1 to 100
    "drop": (0.25, 0.5, 0.75),  # share of frames that are lost, the one before staying on display
    "noise": (20, 10, 0, -10),  # ratio of the audio's power to that of white noise added to it, in dB
    "silence": (),  # the audio is taken away
    "shift": (0.4,),  # seconds by which the audio is late, what leaves the window at its end entering at its start
    "scene": (),  # the audio is that of another clip of the same class and group
    "swap": (),  # the audio is that of another clip, of another class
}
"""Degradations and the severities the study tests, mildest first.

Whatever is drawn (directions, dropped frames, noise) is a function of the clip and the view alone, so every model is
tested on the same video and audio.
"""

OF_OTHERS = ("scene", "swap")
"""Kinds for which another clip has to be read."""
OF_VIDEO = ("lowres", "blur", "motion", "jpeg", "drop")


@dataclass(frozen=True)
class Degradation:
    """One way in which a clip is degraded: a kind of `SEVERITIES`, and how much; 0 where there is no more or less.

    Raises:
        InputError: an unknown kind, or a severity out of range.
    """

    kind: str
    severity: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in SEVERITIES:
            raise InputError(f"degradation '{self.kind}' does not exist; there are {', '.join(SEVERITIES)}")
        fits = {
            "lowres": self.severity >= 1,
            "blur": self.severity > 0,
            "motion": self.severity > 0,
            "jpeg": 1 <= self.severity <= 100,
            "drop": 0 < self.severity < 1,
            "noise": math.isfinite(self.severity),
            "shift": math.isfinite(self.severity),
        }.get(self.kind, self.severity == 0)
        if not fits:
            examples = ", ".join(f"{self.kind}:{s:g}" for s in SEVERITIES[self.kind]) or self.kind
            raise InputError(f"degradation {self}: the severity is out of range; the study takes {examples}")

    def __str__(self) -> str:
        return f"{self.kind}:{self.severity:g}" if SEVERITIES[self.kind] else self.kind

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """Read `kind:severity`; raises InputError where it is no such thing."""
        kind, _, severity = text.partition(":")
        try:
            number = float(severity or 0)
        except ValueError:
            raise InputError(f"degradation '{text}': the severity must be a number, as in {kind}:4") from None
        return cls(kind, number)


def all_degradations() -> list[Degradation]:
    """The study's, kind by kind."""
    return [Degradation(kind, s) for kind, severities in SEVERITIES.items() for s in severities or (0.0,)]


def degrade_video(video: Tensor, degradation: Degradation, seeds: Tensor) -> Tensor:
    """Degrade video (B, 3, T, H, W) float32 in [0, 1]; degradations of the audio leave it as it is.

    Seeds (B,) int64 are of what is drawn for each clip.
    """
    kind, severity = degradation.kind, degradation.severity
    if kind not in OF_VIDEO:
        return video
    clips, _, times, height, width = video.shape
    flat = video.transpose(1, 2).flatten(0, 1)
    pixels = severity * height / REFERENCE_SIZE
    if kind == "lowres":
        small = [max(1, round(n / severity)) for n in (height, width)]
        down = F.interpolate(flat, small, mode="area")
        flat = F.interpolate(down, (height, width), mode="bilinear", align_corners=False)
    elif kind == "blur":
        # torchvision pads by reflection, which cannot reach beyond the frame.
        reach = min(math.ceil(3 * pixels), height - 1, width - 1)
        flat = v2.gaussian_blur(flat, [2 * reach + 1] * 2, [pixels] * 2)
    elif kind == "motion":
        flat = _smear(flat, pixels, seeds.repeat_interleave(times))
    elif kind == "jpeg":
        images = (flat * 255).round().to(torch.uint8).cpu()
        flat = torch.stack([v2.jpeg(image, int(severity)) for image in images]).to(video) / 255
    else:
        return video.take_along_dim(_frozen(times, severity, seeds).view(clips, 1, times, 1, 1), 2)
    return flat.unflatten(0, (clips, times)).transpose(1, 2).contiguous()


def degrade_audio(
    waveform: Tensor,
    has_audio: Tensor,
    degradation: Degradation,
    seeds: Tensor,
    sample_rate: int,
    other: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Degrade audio (B, samples) float32, where there is any (B,) bool; degradations of the video leave it as it is.

    Seeds (B,) int64 are of what is drawn for each clip; `other` is what `OF_OTHERS` take, audio (B, samples) of other
    clips and whether there are any (B,) bool.

    Returns:
        The waveforms, and which clips have audio. A clip for which there is no other falls silent.
    """
    if degradation.kind == "noise":
        power = waveform.square().mean(1, keepdim=True)
        scale = (power * 10 ** (-degradation.severity / 10)).sqrt()
        noise = torch.stack([torch.randn(waveform.shape[1], generator=_generator(seed)) for seed in seeds.tolist()])
        return waveform + scale * noise.to(waveform), has_audio
    if degradation.kind == "silence":
        return torch.zeros_like(waveform), torch.zeros_like(has_audio)
    if degradation.kind == "shift":
        return waveform.roll(round(degradation.severity * sample_rate), 1), has_audio
    if degradation.kind in OF_OTHERS:
        assert other is not None, "the data set has to read other clips"
        waveform, found = other
        return waveform, has_audio & found
    return waveform, has_audio


def next_audible(has_audio: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """By clip, the next of the batch with audio (B,) bool and another class, and whether there is one.

    The label is (B,) int64, or (B, classes) of 0 and 1: there, another class is none that both have.
    """
    number = torch.arange(len(label), device=label.device)
    other = label[None] != label[:, None] if label.ndim == 1 else ~(label[None] & label[:, None]).any(2)
    fits = has_audio[None] & other
    distance = (number[None] - number[:, None]) % len(label)
    return distance.masked_fill(~fits, len(label)).argmin(1), fits.any(1)


def _generator(seed: int) -> torch.Generator:
    """On the CPU, whose numbers are the same on every machine."""
    return torch.Generator().manual_seed(seed)


def _smear(frames: Tensor, length: float, seeds: Tensor) -> Tensor:
    """Average (N, C, H, W) along a line of some pixels."""
    height, width = frames.shape[-2:]
    angles = torch.stack([torch.rand((), generator=_generator(seed)) for seed in seeds.tolist()]).to(frames) * math.pi
    steps = math.ceil(length) + 1
    total = torch.zeros_like(frames)
    for offset in torch.linspace(-length / 2, length / 2, steps).tolist():
        theta = frames.new_tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(len(frames), 1, 1)
        theta[:, 0, 2], theta[:, 1, 2] = 2 * offset * angles.cos() / width, 2 * offset * angles.sin() / height
        grid = F.affine_grid(theta, list(frames.shape), align_corners=False)
        total += F.grid_sample(frames, grid, padding_mode="border", align_corners=False)
    return total / steps


def _frozen(times: int, share: float, seeds: Tensor) -> Tensor:
    """(B, T) int64: the frame on display when some are lost; the first is always there."""
    lost = round(share * (times - 1))
    kept = torch.ones(len(seeds), times, dtype=torch.bool)
    for row, seed in zip(kept, seeds.tolist(), strict=True):
        row[1 + torch.randperm(times - 1, generator=_generator(seed))[:lost]] = False
    return (torch.arange(times) * kept).cummax(1).values.to(seeds.device)
