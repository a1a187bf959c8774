"""What decoding a data set found out, as text."""

from typing import TYPE_CHECKING

from avmae.cli.table import print_table
from avmae.errors import printable

if TYPE_CHECKING:
    from avmae.data.inventory import Inventory


def print_inventory(found: "Inventory", folded: bool) -> None:
    """Print counts by part, formats, what differs from UCF101 (`folded`), and problems."""
    from avmae.data.manifest import NAME

    file, records, counts = found.file, found.records.values(), found.counts()
    files = f"{found.decoded} of {len(records)} files decoded"
    print(files if found.decoded else f"nothing to do: {file} is up to date")
    print_table(["part", *next(iter(counts.values()))], [[part, *count.values()] for part, count in counts.items()])
    print()
    formats = [[*format_, number] for format_, number in found.formats().most_common(12)]
    print_table(["video", "audio", "size", "rate", "files"], formats)
    if folded and (classes := len(found.listed.classes)) == 101:
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
