"""Which tokens are masked: index tensors of the same count for every clip, so shapes are static and nothing waits."""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from avmae.errors import InputError


class Mask(NamedTuple):
    """Token numbers of each clip; no token is in both, and all are in one unless some are not to be decoded.

    Args:
        visible: (B, V) int64.
        hidden: (B, H) int64.
    """

    visible: Tensor
    hidden: Tensor


STRATEGIES: dict[str, dict[str, tuple[int, ...]]] = {
    # The axes along which places are drawn; a drawn place is masked along all other axes.
    "video": {"tube": (1, 2), "random": (0, 1, 2), "frame": (0,)},
    "audio": {"random": (0, 1), "time": (0,), "frequency": (1,)},
}


class Masking(nn.Module):
    """Draws which tokens of one modality's grid are masked.

    A place is a point of the axes that the strategy draws along, and is masked whole: for `tube` a patch position
    through all times (VideoMAE section 3.3), for `frame` and `time` all patches of one time, for `frequency` all of one
    band, for `random` one token. floor(ratio x places) are masked, as in VideoMAE.

    Args:
        modality: `video` or `audio`.
        strategy: a key of `STRATEGIES[modality]`.
        ratio: share of places masked, 0 < ratio < 1.
        size: tokens along each axis of the grid.
        undecoded: share of the masked tokens that are left out in training, 0 <= undecoded < 1 (VideoMAEv2 section
            3.2). As with its running cells, another part of each masked place is left out at each time.

    Raises:
        InputError: unknown strategy, or a ratio that leaves nothing masked or nothing visible.
    """

    members: Tensor
    decoded: Tensor

    def __init__(
        self, modality: str, strategy: str, ratio: float, size: tuple[int, ...], undecoded: float = 0.0
    ) -> None:
        super().__init__()
        if strategy not in STRATEGIES[modality]:
            raise InputError(f"mask.{modality}={strategy} is unknown; choose from {', '.join(STRATEGIES[modality])}")
        key = "mask.ratio" if modality == "video" else "mask.audio_ratio"
        if not 0 < ratio < 1:
            raise InputError(f"{key} must lie between 0 and 1, both excluded, not {ratio}")
        if not 0 <= undecoded < 1:
            raise InputError(f"mask.decoder_ratio must be at least 0 and below 1, not {undecoded}")
        axes = STRATEGIES[modality][strategy]
        rest = [axis for axis in range(len(size)) if axis not in axes]
        self.places = math.prod(size[axis] for axis in axes)
        # The margin keeps 0.7 x 10 at 7 in binary floating point.
        self.hidden_places = int(ratio * self.places + 1e-9)
        if not 0 < self.hidden_places < self.places:
            what = "masked" if self.hidden_places == 0 else "visible"
            raise InputError(
                f"{key}={ratio} leaves nothing {what}: the {strategy} strategy draws from {self.places} "
                f"place{'s' if self.places > 1 else ''} of the {'x'.join(map(str, size))} {modality} tokens; "
                "change the ratio, the strategy or clip"
            )
        numbers = torch.arange(math.prod(size)).reshape(size).permute(*axes, *rest)
        self.register_buffer("members", numbers.reshape(self.places, -1), persistent=False)
        # Along each diagonal of places and times, evenly: the same count in every draw.
        rows, columns = (torch.arange(n, device="cpu") for n in (self.hidden_places, self.members.shape[1]))
        diagonal = rows[:, None] + columns
        kept = ((diagonal + 1) * (1 - undecoded) + 1e-9).floor() > (diagonal * (1 - undecoded) + 1e-9).floor()
        if not kept.any():
            raise InputError(f"mask.decoder_ratio={undecoded} leaves nothing to decode; lower it")
        self.register_buffer("decoded", kept.flatten().nonzero().flatten(), persistent=False)

    def forward(self, batch: int, generator: Generator, rank: int = 0, world: int = 1) -> Mask:
        """Draw the masks of ``batch`` clips on the generator's device.

        Noise is drawn for the clips of all ``world`` processes and each keeps its own rows, so the masks of a step do
        not depend on how many processes share it.
        """
        noise = torch.rand(world * batch, self.places, generator=generator, device=generator.device)
        order = noise[rank * batch : (rank + 1) * batch].argsort(dim=1)
        tokens = self.members.to(order.device)[order]
        hidden = tokens[:, : self.hidden_places].flatten(1)
        if self.training and len(self.decoded) < hidden.shape[1]:
            hidden = hidden[:, self.decoded.to(order.device)]
        return Mask(visible=tokens[:, self.hidden_places :].flatten(1), hidden=hidden)
