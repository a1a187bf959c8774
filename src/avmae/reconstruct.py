"""`python -m avmae.reconstruct ckpt=PATH input=FILE output=DIR`: see what pretrained models make of videos."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.cli.config import spec
from avmae.cli.table import print_table
from avmae.errors import InputError, MediaError, printable


@command("reconstruct")
def main(config: dict[str, Any]) -> None:
    """Hide most of one window of each video, reconstruct it, and write videos, contact sheets and figures."""
    from avmae.data.sources.folder import SUFFIXES

    systems = load_systems(config)
    source, output = Path(config["input"]).expanduser(), Path(config["output"]).expanduser()
    files = [source]
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"input={source} holds no videos ({', '.join(sorted(SUFFIXES))})")
    rows, failed = [], []
    named = Counter(file.with_suffix("") for file in files)
    for file in files:
        folder = output
        if source.is_dir():
            # a.mp4 and a.avi are not one video.
            folder /= file.relative_to(source).with_suffix("" if named[file.with_suffix("")] == 1 else file.suffix)
        try:
            metrics = reconstruct(file, systems, folder, config)
        except MediaError as error:
            if not source.is_dir():
                raise
            failed.append(str(error))
            continue
        rows += [{"file": file.name, "system": label, **found} for label, found in metrics.items()]
    if not rows:
        raise MediaError(f"none of the {len(files)} videos can be read, the first: {failed[0]}")
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{v:.4g}" if isinstance(v := row.get(name), float) else v or "-" for name in names] for row in rows]
    print_table(names, cells)
    print(*(printable(f"skipped: {line}") for line in failed), sep="\n", end="\n" if failed else "")
    print(f"wrote {output}: reconstruction.mp4, reconstruction.png, metrics.json; sounds as WAV where there are any")


@dataclass(frozen=True)
class System:
    """A pretrained model and how it is named in pictures and tables."""

    label: str
    model: Any
    settings: dict[str, Any]


def load_systems(config: dict[str, Any]) -> list[System]:
    """Load the checkpoints, with the masks that are asked for.

    Raises:
        InputError: one has no decoder, or takes another window than the first.
    """
    from avmae.clip import ClipSpec
    from avmae.models.build import MaskSpec, build_maskings
    from avmae.viewing.inference import load_autoencoder

    systems: list[System] = []
    for path in config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]]:
        model, settings = load_autoencoder(path)
        first = systems[0].model.clip if systems else model.clip
        for key in ClipSpec.__dataclass_fields__:
            if getattr(model.clip, key) != getattr(first, key):
                raise InputError(
                    f"{path} was trained with clip.{key}={getattr(model.clip, key)}, the first checkpoint with "
                    f"{getattr(first, key)}; they can only be compared on the same window"
                )
        # The first one's mask for all: differences should come from the systems.
        mask = (systems[0].settings if systems else settings)["mask"]
        mask = mask | {key: value for key, value in config["mask"].items() if value is not None}
        model.maskings = build_maskings(model.encoder, spec(MaskSpec, "mask", mask))
        label = settings["model"]["name"]
        taken = {system.label for system in systems}
        run, file = Path(path).absolute().parent.parent.name, Path(path).stem
        names = [label, f"{label} ({run})", f"{label} ({run}, {file})", f"{label} ({len(systems) + 1})"]
        label = next(name for name in names if name not in taken)
        systems.append(System(label, model, settings | {"mask": mask}))
    return systems


def reconstruct(file: Path, systems: list[System], output: Path, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Reconstruct one window by every system and write what came out; returns figures by system."""
    from avmae.data.decode.window import read_window
    from avmae.viewing.reconstruction import compare

    clip = systems[0].model.clip
    window = read_window(file, clip, config["position"], clip.canvas)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}") from error
    comparison = compare({system.label: system.model for system in systems}, window, config["seed"])
    names = ", ".join(f"{system.label} {system.settings['size']['name']}" for system in systems)
    comparison.write(output, f"{file.name}  ({names})")
    content = {
        "input": str(file),
        "mask": systems[0].settings["mask"],
        "seed": config["seed"],
        "systems": comparison.figures,
    }
    (output / "metrics.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return comparison.figures


if __name__ == "__main__":
    main()
