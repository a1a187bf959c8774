"""`python -m avmae.prepare data=ucf101 data.root=DIR`: check every file of a data set by decoding it."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmae.cli.command import command
from avmae.cli.config import check_counts
from avmae.cli.table import print_table
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
    """Write the manifest and print a summary; see `python -m avmae.prepare --help`."""
    from avmae.data.manifest import NAME

    check_counts(config, "processes")
    data = config["data"]
    found = prepare(data, config["output"], config["processes"], partial(bar, "Decoding"))
    file, records = found.file, found.records.values()
    files = f"{found.decoded} of {len(records)} files decoded"
    print(files if found.decoded else f"nothing to do: {file} is up to date")
    counts = found.counts()
    rows = [[part, *map(str, count.values())] for part, count in counts.items()]
    print_table(["part", *next(iter(counts.values()))], rows)
    print()
    rows = [[*format_, str(number)] for format_, number in found.formats().most_common(12)]
    print_table(["video", "audio", "size", "rate", "files"], rows)
    if (classes := len(found.listed.classes)) == 101 and "fold" in data:
        unlike = found.unlike_the_original()
        print(f"\n{classes - len(unlike)} of {classes} classes have audio, or none, as in the original")
        if unlike:
            print("different:", ", ".join(f"{printable(name)} ({a} of {clips})" for name, (a, clips) in unlike.items()))
    for note in found.listed.notes:
        print(printable(f"note: {note}"))
    if problems := [record for record in records if record.problem]:
        print(f"\n{len(problems)} files with problems, for example:")
        print(*(printable(f"  {record.path}: {record.problem}", keep="") for record in problems[:10]), sep="\n")
    print(f"wrote {file}" if found.decoded else f"kept {file}")
    if file != found.root / NAME:
        print(f"train with it: data.manifest={file}")
    if config["pack"]:
        write_packed(found, config)


def bar(title: str, items: Iterable[Any], total: int) -> Iterable[Any]:
    """A bar only where there is something to wait for."""
    from rich.console import Console
    from rich.progress import track

    items = iter(items)
    first = list(islice(items, 1))
    return chain(first, track(items, title, total=total - 1, console=Console(stderr=True))) if first else []


def write_packed(found: "Inventory", config: dict[str, Any]) -> None:
    """Write the packed copy and say how it compares with the source."""
    from avmae.data.inventory import pack_inventory
    from avmae.data.sources.shards import PackSpec

    how, target = spec(PackSpec, "packing", config["packing"]), Path(config["pack"]).expanduser()
    clips, before, after, problems = pack_inventory(found, target, how, config["processes"], partial(bar, "Packing"))
    if problems:
        print(f"{len(problems)} clips cannot be packed and are left out, the first: {printable(problems[0])}")
    ratio = f"{after / max(before, 1):.1f}"
    print(f"wrote {target}: {clips} clips, {after / 1e6:.1f} MB, {ratio} times the source's size")
    print(
        f"Lossy: JPEG at quality {how.quality}, short side at most {how.short_side} px; mono audio of 16 bits at "
        f"{how.sample_rate} Hz\ntrain from it: data=shards data.root={target}"
    )


if __name__ == "__main__":
    main()
