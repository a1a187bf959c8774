"""What data and model must agree on: the shape of one clip."""

from dataclasses import dataclass

from avmae.errors import InputError

HOP_SECONDS = 0.010
"""One spectrogram frame, as AudioMAE and CAV-MAE use it."""

CANVAS_ASPECT = 4
"""Long side by short side above which frames are squeezed: films are narrower, and broken headers fill no memory."""

SPECTROGRAM_MULTIPLE = 16
"""Spectrogram frames are cut to a multiple of this, the usual patch, so that any stride and rate give whole patches."""


@dataclass(frozen=True)
class ClipSpec:
    """One window of a clip, as the datamodule hands it over and the model takes it.

    The frames are those on display at ``start + i * stride / fps`` seconds, so the window lasts the same time whatever
    a file's own frame rate, and its audio always has the same length. On a 25 fps file this is every ``stride``-th
    frame.

    Args:
        frames: per clip.
        stride: distance of two of them, in frames of the reference rate.
        fps: the reference frame rate, in Hz. UCF101 is mostly 25.
        size: height and width of the square frames, in pixels.
        canvas: short side that frames are scaled to before they are cut, and the most of their long side, in pixels;
            empty for 15/14 of `size` (240 at 224, UCF101's own) and four times that.
        sample_rate: of the mono audio, in Hz.
        mel_bins: height of the log-mel spectrogram.
        filter_bank: `mel`, or `kaldi`, on which AudioMAE was trained; see `avmae.data.spectrogram`.
        pixel_mean: per RGB channel, of pixels in [0, 1].
        pixel_std: per RGB channel, of pixels in [0, 1].
        mel_mean: of the natural-log mel power spectrogram.
        mel_std: of the natural-log mel power spectrogram.

    Raises:
        InputError: a count, rate or standard deviation is not positive, the filter bank is unknown, or the window is
            too short for one spectrogram patch.
    """

    frames: int = 16
    stride: int = 4
    fps: float = 25.0
    size: int = 224
    canvas: tuple[int, ...] = ()
    sample_rate: int = 16_000
    mel_bins: int = 128
    filter_bank: str = "mel"
    pixel_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    pixel_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    mel_mean: float = -6.0
    mel_std: float = 4.0

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "fps", "size", "sample_rate", "mel_bins", "mel_std"):
            if not getattr(self, name) > 0:
                raise InputError(f"clip.{name} must be positive, not {getattr(self, name)}")
        short = 2 * round(self.size * 15 / 28)
        object.__setattr__(self, "canvas", tuple(self.canvas or (short, CANVAS_ASPECT * short)))
        if len(self.canvas) != 2 or not 0 < self.canvas[0] <= self.canvas[1]:
            raise InputError(f"clip.canvas takes a short and a long side, such as [240, 960], not {list(self.canvas)}")
        if self.filter_bank not in ("mel", "kaldi"):
            raise InputError(f"clip.filter_bank={self.filter_bank} is unknown; choose mel or kaldi")
        object.__setattr__(self, "pixel_mean", tuple(self.pixel_mean))
        object.__setattr__(self, "pixel_std", tuple(self.pixel_std))
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or not all(s > 0 for s in self.pixel_std):
            raise InputError("clip.pixel_mean and clip.pixel_std take three numbers each, the latter above 0")
        if self.spectrogram_frames == 0:
            raise InputError(
                f"clip: {self.frames} frames at stride {self.stride} and {self.fps:g} fps last {self.seconds:.3f} s, "
                "too short for one spectrogram patch; raise clip.frames or clip.stride"
            )

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.frames * self.stride / self.fps

    @property
    def samples(self) -> int:
        """Length of the window's audio."""
        return round(self.seconds * self.sample_rate)

    @property
    def spectrogram_frames(self) -> int:
        """Spectrogram columns of 10 ms, cut to whole patches."""
        columns = int(self.seconds / HOP_SECONDS + 1e-6)
        return columns - columns % SPECTROGRAM_MULTIPLE
