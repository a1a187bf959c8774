"""One pass over clips, shared by all that only looks at them: loader, device, transform, precision, progress."""

import sys
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from avmae.data.datamodule import Batch, ClipDataModule
from avmae.errors import InputError, printable

Item = TypeVar("Item")
LINE_SECONDS = 15
"""Between lines of progress in a log file."""
BF16_DIM = 192
"""Width of the encoder's tokens from which bf16 is faster on CPUs that compute in it."""


def settled_precision(precision: str, accelerator: str, dim: int) -> str:
    """What `auto` is: bf16 autocast on devices that compute in it and do not emulate it, else full precision.

    V100 and T4 emulate it, as CPUs without AVX-512 BF16 and AMX do. On CPUs, narrow models are no faster in it.

    Args:
        precision: `auto`, or what is asked for.
        accelerator: `cpu`, or else a GPU where there is one.
        dim: of the encoder's tokens.
    """
    if precision != "auto":
        return precision
    if accelerator != "cpu" and torch.cuda.is_available():
        computes = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        computes = dim >= BF16_DIM and _cpu_computes_in_bf16()
    return "bf16-mixed" if computes else "32-true"


def _cpu_computes_in_bf16() -> bool:
    supported = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # By itself, the former is true of all processors with AVX-512, of which the older emulate it.
    return supported and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True)
class Inference:
    """How a network that is only tested sees the clips of a data set.

    Args:
        accelerator: `cpu`, or else a GPU where there is one.
        precision: `auto`, `bf16-mixed` or `32-true`, as Lightning names them.
        max_unreadable: largest share of a part's clips that may be unreadable.
        progress: print how many clips there are, how far the pass is, and which clips cannot be read.

    Raises:
        InputError: another precision, or a GPU is asked for where there is none.
    """

    accelerator: str = "auto"
    precision: str = "auto"
    max_unreadable: float = 0.05
    progress: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16-mixed", "32-true"):
            raise InputError(f"precision={self.precision} is not for tests; choose auto, bf16-mixed or 32-true")
        if self.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
            raise InputError(f"accelerator={self.accelerator}, but no GPU is to be seen here; choose cpu or auto")

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu")

    def autocast(self, dim: int) -> torch.autocast:
        """The context in which a network whose encoder has tokens of ``dim`` computes."""
        rounded = settled_precision(self.precision, self.accelerator, dim) == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=rounded)

    def batches(
        self, datamodule: ClipDataModule, part: str, partners: Collection[str] = ()
    ) -> Iterator[tuple[Any, Batch]]:
        """Segments x crops of each clip of a part, on the device: as read, and as `datamodule.transform` makes it.

        Args:
            datamodule: of the data set.
            part: `train`, `val` or `test`.
            partners: kinds of other clips to be read with each; see `ClipDataset`.

        Raises:
            InputError: too many clips cannot be read; it names some of them.
        """
        transform, clips = datamodule.transform.to(self.device), len(getattr(datamodule.splits, part))
        if self.progress:
            views = f"{datamodule.loading.segments} x {datamodule.loading.crops} views each (segments x crops)"
            print(f"{clips} {part} clips, {views}")
        unreadable: set[str] = set()
        for sample in self.track(datamodule.part_loader(part, partners), f"Reading {part}"):
            sample = datamodule.transfer_batch_to_device(sample, self.device, 0)
            unreadable.update(sample["unreadable"])
            if len(unreadable) > self.max_unreadable * clips:
                raise InputError(
                    f"{len(unreadable)} or more of {clips} clips of the {part} part cannot be read, more than "
                    f"max_unreadable={self.max_unreadable:g}; {_examples(unreadable)}"
                )
            yield sample, transform(sample)
        if unreadable and self.progress:
            print(f"skipped: {len(unreadable)} {part} clips, {printable(_examples(unreadable))}", file=sys.stderr)

    def track(self, items: Iterable[Item], title: str) -> Iterable[Item]:
        """The items, with a bar on a terminal, or a line now and then in a log file, if progress is to be shown."""
        console = Console(stderr=True)
        if not self.progress:
            return items
        return track(items, title, console=console) if console.is_terminal else _lines(items, title)


def _examples(errors: set[str]) -> str:
    return "\n  ".join(["for example:", *sorted(errors)[:5]])


def _lines(items: Any, title: str) -> Iterator[Any]:
    shown = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - shown > LINE_SECONDS:
            shown = time.monotonic()
            print(f"{title}  {done}/{len(items)}", file=sys.stderr, flush=True)
        yield item
