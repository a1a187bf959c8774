"""`python -m avmae.prepare data=ucf101 data.root=DIR`: check every file of a data set by decoding it."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmae.cli.command import command
from avmae.cli.config import check_counts
from avmae.cli.inventory import print_inventory
from avmae.cli.table import bar
from avmae.errors import printable
from avmae.runs.settings import spec

if TYPE_CHECKING:
    from avmae.data.inventory import Inventory


def prepare(
    data: Mapping[str, Any],
    output: str | Path | None = None,
    processes: int | None = None,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda records, total: records,
) -> "Inventory":
    """Decode the files of a data set and write its manifest; see `avmae.data.inventory.take_inventory`."""
    from avmae.data.inventory import take_inventory

    return take_inventory(data, output, processes, progress)


@command("prepare")
def main(config: dict[str, Any]) -> None:
    """Write the manifest, a summary, and the packed copy if there is to be one."""
    check_counts(config, "processes")
    processes = config["processes"]
    found = prepare(config["data"], config["output"], processes, partial(bar, "Decoding"))
    print_inventory(found, "fold" in config["data"])
    if not config["pack"]:
        return
    from avmae.data.inventory import pack_inventory
    from avmae.data.sources.shards import PackSpec

    how, target = spec(PackSpec, "packing", config["packing"]), Path(config["pack"]).expanduser()
    clips, before, after, problems = pack_inventory(found, target, how, processes, partial(bar, "Packing"))
    if problems:
        print(f"{len(problems)} files cannot be packed and are left out, the first: {printable(problems[0])}")
    ratio = f"{after / max(before, 1):.1f} times the source's size"
    print(
        f"wrote {target}: {clips} clips, {after / 1e6:.1f} MB, {ratio}\n"
        f"Lossy: JPEG at quality {how.quality}, short side at most {how.short_side} px; mono audio of 16 bits at "
        f"{how.sample_rate} Hz\ntrain from it: data=shards data.root={target}"
    )


if __name__ == "__main__":
    main()
