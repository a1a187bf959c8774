"""`python -m avmae.prepare data=ucf101 data.root=DIR`: check every file of a data set by decoding it."""

import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.cli.config import construct, spec
from avmae.cli.table import print_table
from avmae.errors import InputError, printable


@command("prepare")
def main(config: dict[str, Any]) -> None:
    """Write the manifest and print a summary; see `python -m avmae.prepare --help`."""
    from rich.console import Console
    from rich.progress import track

    from avmae.clip import ClipSpec
    from avmae.data.manifest import NAME, read_manifest, update_manifest

    data = config["data"]
    # Made once even where lists are read below: it writes the embedded data set if that is asked for.
    # What it is about to write need not be there yet.
    datamodule = construct("data", {k: v for k, v in data.items() if k != "manifest"}, clip=ClipSpec())
    if datamodule.root is None:
        raise InputError("a packed copy (data=shards) has no files to decode; prepare the data set that it was made of")
    root = Path(datamodule.root).expanduser()
    parts = folds(root) if "fold" in data else parts_of(datamodule.listed)
    entries = {entry.path: entry for part in parts.values() for entry in part}
    # Lists may have absolute paths where the root is relative; `relpath` makes both absolute.
    names = {os.path.relpath(path, root): path for path in entries}
    paths = sorted(names)
    if outside := [names[path] for path in paths if path.startswith(os.pardir + os.sep)]:
        raise InputError(f"{outside[0]} is not under data.root={root}; choose a folder that holds all clips")
    file = Path(config["output"] or data.get("manifest") or root / NAME).expanduser()
    known = read_manifest(file)
    processes = config["processes"] or os.cpu_count() or 1
    decoded = update_manifest(root, paths, file, processes)
    first = list(islice(decoded, 1))
    # A bar only where there is something to wait for.
    shown = track(decoded, "Decoding", total=len(paths) - 1, console=Console(stderr=True)) if first else []
    todo = len([*first, *shown])
    print(f"{todo} of {len(paths)} files decoded" if todo else f"nothing to do: {file} is up to date")

    records = read_manifest(file)
    rows = []
    for part, clips in parts.items():
        of_part = [records[os.path.relpath(entry.path, root)] for entry in clips]
        sounding = sum(record.has_audio for record in of_part)
        bad = sum(not record.readable for record in of_part)
        rows.append([part, *map(str, (len(of_part), sounding, len(of_part) - sounding - bad, bad))])
    print_table(["part", "clips", "with sound", "silent", "unreadable"], rows)
    print()
    described: Counter[tuple[str, ...]] = Counter()
    for record in records.values():
        rate = f"{record.fps:.4g} fps" + ("" if record.constant_rate else ", varying")
        described[record.video_codec, record.audio_codec or "-", f"{record.width}x{record.height}", rate] += 1
    print_table(["pictures", "sound", "size", "rate", "files"], [[*k, str(n)] for k, n in described.most_common(12)])
    if datamodule.classes and len(datamodule.classes) == 101 and "fold" in data:
        report_sounding_classes(datamodule.classes, entries, records, root)
    for note in datamodule.listed.notes:
        print(printable(f"note: {note}"))
    problems = [record for record in records.values() if record.problem]
    if problems:
        print(f"\n{len(problems)} files with problems, for example:")
        print(*(printable(f"  {record.path}: {record.problem}", keep="") for record in problems[:10]), sep="\n")
    print(f"wrote {file}" if todo or not known else f"kept {file}")
    if file != root / NAME:
        print(f"train with it: data.manifest={file}")
    if config["pack"]:
        # The manifest is of all classes, the copy of those alone that data.only keeps.
        chosen = folds(root, datamodule.classes) if "fold" in data else parts
        write_packed(config, chosen, datamodule.classes, root, processes)


def folds(root: Path, classes: list[str] | None = None) -> dict[str, list[Any]]:
    """All folds of UCF101, or of some of its classes; its official lists are checked against the disk on the way."""
    from avmae.data.sources.ucf101 import read_ucf101
    from avmae.data.splits import keep_classes

    parts: dict[str, list[Any]] = {}
    for fold in (1, 2, 3):
        splits = read_ucf101(root, fold, val_groups=0)
        splits = keep_classes(splits, classes or splits.classes)
        parts |= {f"fold {fold} train": splits.train, f"fold {fold} test": splits.test}
    return parts


def parts_of(splits: Any) -> dict[str, list[Any]]:
    """The parts that have clips."""
    parts = {name: getattr(splits, name) for name in ("train", "val", "test")}
    return {name: entries for name, entries in parts.items() if entries}


def write_packed(
    config: dict[str, Any], parts: dict[str, list[Any]], classes: list[str], root: Path, processes: int
) -> None:
    """Write the packed copy and say how it compares with the source."""
    from rich.console import Console
    from rich.progress import track

    from avmae.data.sources.shards import PackSpec, Row, pack

    spec_, target = spec(PackSpec, "packing", config["packing"]), Path(config["pack"]).expanduser()
    # A clip may be in several lists, and have another label in each.
    rows: dict[tuple[str, int], Row] = {}
    for part, entries in parts.items():
        _, fold, name = part.split() if part.startswith("fold ") else ("", "0", part)
        for entry in entries:
            path = os.path.relpath(entry.path, root)
            row = rows.setdefault((path, entry.label), Row(path, entry.label, entry.group, {}))
            row.parts.setdefault(fold, []).append(name)

    def progress(clips: Any) -> Any:
        return track(clips, "Packing", total=len(rows), console=Console(stderr=True))

    chosen = [rows[key] for key in sorted(rows)]
    problems = pack(chosen, classes, root, target, spec_, processes, progress)
    before = sum((root / row.name).stat().st_size for row in chosen)
    after = sum(file.stat().st_size for file in target.iterdir())
    if problems:
        print(f"{len(problems)} clips cannot be packed and are left out, the first: {printable(problems[0])}")
    size, ratio = f"{after / 1e6:.1f} MB", f"{after / max(before, 1):.1f}"
    print(f"wrote {target}: {len(chosen) - len(problems)} clips, {size}, {ratio} times the source's size")
    print(
        f"Lossy: JPEG at quality {spec_.quality}, short side at most {spec_.short_side} px; mono sound of 16 bits at "
        f"{spec_.sample_rate} Hz\ntrain from it: data=shards data.root={target}"
    )


def report_sounding_classes(classes: list[str], entries: dict[Path, Any], records: dict[str, Any], root: Path) -> None:
    """Name UCF101's classes that have sound where the original has none, or the other way round."""
    from avmae.data.sources.ucf101 import CLASSES_WITH_SOUND

    sounding, clips = Counter[str](), Counter[str]()
    for path, entry in entries.items():
        clips[classes[entry.label]] += 1
        sounding[classes[entry.label]] += records[os.path.relpath(path, root)].has_audio
    differing = [n for n in classes if (2 * sounding[n] > clips[n]) != (n in CLASSES_WITH_SOUND)]
    print()
    print(f"{len(classes) - len(differing)} of {len(classes)} classes have sound, or none, as in the original")
    if differing:
        print("different:", ", ".join(f"{printable(name)} ({sounding[name]} of {clips[name]})" for name in differing))


if __name__ == "__main__":
    main()
