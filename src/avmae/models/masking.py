"""Which tokens are masked: index tensors of the same count for every clip, so shapes are static and nothing waits."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Generator, Tensor, nn

from avmae.errors import InputError


class Mask(NamedTuple):
    """Token numbers of each clip; no token is in both, and all are in one unless some are not to be decoded.

    Args:
        visible: (B, V) int64.
        masked: (B, M) int64.
    """

    visible: Tensor
    masked: Tensor


STRATEGIES: dict[str, dict[str, tuple[int, ...]]] = {
    # The axes along which places are drawn; a drawn place is masked along all other axes.
    "video": {"tube": (1, 2), "random": (0, 1, 2), "frame": (0,), "span": (0,)},
    "audio": {"random": (0, 1), "time": (0,), "frequency": (1,), "span": (0,)},
}


class Pattern(nn.Module):
    """One strategy for a grid: its places, the tokens of each, and how many are masked.

    Args:
        modality: `video` or `audio`, for messages.
        strategy: a key of `STRATEGIES[modality]`.
        ratio: share of places masked.
        size: tokens along each axis of the grid.
        undecoded: see `Masking`.
        begin: share of the clip by which a span begins after the clip's phase.
    """

    members: Tensor
    decoded: Tensor

    def __init__(
        self, modality: str, strategy: str, ratio: float, size: tuple[int, ...], undecoded: float, begin: float
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES[modality]:
            raise InputError(f"mask.{modality}={strategy} is unknown; choose from {', '.join(STRATEGIES[modality])}")
        key = "mask.ratio" if modality == "video" else "mask.audio_ratio"
        if not 0 < ratio < 1:
            raise InputError(f"{key} must lie between 0 and 1, both excluded, not {ratio}")
        axes = STRATEGIES[modality][strategy]
        rest = [axis for axis in range(len(size)) if axis not in axes]
        self.strategy, self.begin = strategy, begin
        self.places = math.prod(size[axis] for axis in axes)
        # The margin keeps 0.7 x 10 at 7 in binary floating point.
        self.masked_places = int(ratio * self.places + 1e-9)
        if not 0 < self.masked_places < self.places:
            what = "masked" if self.masked_places == 0 else "visible"
            raise InputError(
                f"{key}={ratio} leaves nothing {what}: the {strategy} strategy draws from {self.places} "
                f"place{'s' if self.places > 1 else ''} of the {'x'.join(map(str, size))} {modality} tokens; "
                "change the ratio, the strategy or clip"
            )
        numbers = torch.arange(math.prod(size)).reshape(size).permute(*axes, *rest)
        self.register_buffer("members", numbers.reshape(self.places, -1), persistent=False)
        # Along each diagonal of places and times, evenly: the same count in every draw.
        rows, columns = (torch.arange(n, device="cpu") for n in (self.masked_places, self.members.shape[1]))
        diagonal = rows[:, None] + columns
        kept = ((diagonal + 1) * (1 - undecoded) + 1e-9).floor() > (diagonal * (1 - undecoded) + 1e-9).floor()
        if not kept.any():
            raise InputError(f"mask.decoder_ratio={undecoded} leaves nothing to decode; lower it")
        self.register_buffer("decoded", kept.flatten().nonzero().flatten(), persistent=False)

    def forward(self, noise: Tensor, phases: Tensor | None) -> Mask:
        """Masks of the clips with this noise (B, places) and, for spans, these phases (B,)."""
        if self.strategy == "span":
            assert phases is not None
            centres = (torch.arange(self.places, device=noise.device) + 0.5) / self.places
            noise = (centres - phases[:, None] - self.begin) % 1
        tokens = self.members.to(noise.device)[noise.argsort(dim=1)]
        masked = tokens[:, : self.masked_places].flatten(1)
        if self.training and len(self.decoded) < masked.shape[1]:
            masked = masked[:, self.decoded.to(noise.device)]
        return Mask(tokens[:, self.masked_places :].flatten(1), masked)


class Masking(nn.Module):
    """Draws which tokens of one modality's grid are masked.

    A place is a point of the axes that the strategy draws along, and is masked whole: for `tube` a patch position
    through all times (VideoMAE section 3.3), for `frame` and `time` all patches of one time, for `frequency` all of one
    band, for `random` one token. `span` masks one stretch of time, that may begin at the clip's end and continue at its
    start; the audio's follows the video's, so that what is masked in one is visible in the other as far as the ratios
    allow. floor(ratio x places) are masked, as in VideoMAE.

    Args:
        modality: `video` or `audio`.
        strategy: a key of `STRATEGIES[modality]`, or shares of the clips by strategy, which have to mask equally many.
        ratio: share of places masked, 0 < ratio < 1.
        size: tokens along each axis of the grid.
        undecoded: share of the masked tokens that are left out in training, 0 <= undecoded < 1 (VideoMAEv2 section
            3.2). As with its running cells, another part of each masked place is left out at each time.
        begin: share of the clip by which a span begins after the clip's phase.

    Raises:
        InputError: unknown strategy, shares that do not add up to 1, strategies that mask unequally many, or a ratio
            that leaves nothing masked or nothing visible.
    """

    bounds: Tensor

    def __init__(
        self,
        modality: str,
        strategy: str | Mapping[str, float],
        ratio: float,
        size: tuple[int, ...],
        undecoded: float = 0.0,
        begin: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= undecoded < 1:
            raise InputError(f"mask.decoder_ratio must be at least 0 and below 1, not {undecoded}")
        shares = {strategy: 1.0} if isinstance(strategy, str) else dict(strategy)
        if not math.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
            raise InputError(f"mask.{modality}={shares}: the shares of the strategies must add up to 1")
        # A buffer, for a tensor made from numbers in every step would have to wait for the device.
        self.register_buffer("bounds", torch.tensor(list(shares.values())).cumsum(0)[:-1], persistent=False)
        patterns = [Pattern(modality, name, ratio, size, undecoded, begin) for name in shares]
        self.patterns = cast(list[Pattern], nn.ModuleList(patterns))
        self.times = size[0] if "span" in shares else 0
        counts = [(p.masked_places * p.members.shape[1], len(p.decoded)) for p in patterns]
        if len(set(counts)) > 1:
            found = ", ".join(f"{name} {masked}" for name, (masked, _) in zip(shares, counts, strict=True))
            raise InputError(
                f"mask.{modality}: these strategies mask different numbers of the {'x'.join(map(str, size))} tokens "
                f"({found}); choose a ratio that is whole along each axis, such as 0.5 or 0.75"
            )

    def forward(
        self, batch: int, generator: Generator, rank: int = 0, world: int = 1, phases: Tensor | None = None
    ) -> Mask:
        """Draw the masks of ``batch`` clips on the generator's device.

        Noise is drawn for the clips of all ``world`` processes and each keeps its own rows, so the masks of a step do
        not depend on how many processes share it.

        Args:
            batch: clips of this process.
            generator: seeded alike in all processes.
            rank: of this process.
            world: processes.
            phases: (B,) float32 from `shared_phases`, where spans begin; None for spans of this modality alone.
        """
        if phases is None:
            phases = shared_phases([self], batch, generator, rank, world)

        def draw(count: int) -> Tensor:
            noise = torch.rand(world * batch, count, generator=generator, device=generator.device)
            return noise[rank * batch : (rank + 1) * batch]

        masks = [pattern(draw(pattern.places), phases) for pattern in self.patterns]
        if len(masks) == 1:
            return masks[0]
        chosen = (draw(1) >= self.bounds.to(generator.device)).sum(1)
        rows = torch.arange(batch, device=generator.device)
        return Mask(*(torch.stack(parts)[chosen, rows] for parts in zip(*masks, strict=True)))


def shared_phases(
    maskings: Iterable[Masking], clips: int, generator: Generator, rank: int = 0, world: int = 1
) -> Tensor | None:
    """Where in each clip the spans of all modalities begin, (clips,) float32 in [0, 1); None where nothing masks spans.

    At a border of tokens in all of them, so that spans meet without overlap.
    """
    times = [masking.times for masking in maskings if masking.times]
    if not times:
        return None
    steps = math.gcd(*times)
    drawn = torch.randint(steps, (world * clips,), generator=generator, device=generator.device)
    return drawn[rank * clips : (rank + 1) * clips] / steps
