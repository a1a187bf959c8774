"""`python -m avmae.reconstruct ckpt=PATH input=FILE output=DIR`: see what pretrained models make of videos."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.cli.table import print_table
from avmae.errors import MediaError, printable
from avmae.runs.settings import spec


def reconstruct(
    ckpt: str | Path | Sequence[str | Path],
    input: str | Path,
    output: str | Path,
    mask: Mapping[str, Any] | None = None,
    **how: Any,
) -> dict[Path, dict[str, dict[str, float | None]] | MediaError]:
    """Mask most of one window of each video, reconstruct it, and write videos, contact sheets and metrics.

    Args:
        ckpt: of pretraining, or several to compare under the same mask.
        input: a video, or a folder of them.
        output: folder to write to; of a folder of videos, each gets a folder below it.
        mask: settings of `MaskSpec`; None and those left out are as in training.
        how: `position`, `seed` and `without_audio` of `reconstruct_files`.

    Returns:
        By file, the metrics by system, or why a file of the folder cannot be read.

    Raises:
        InputError: a checkpoint cannot be used, or nothing can be read or written.
    """
    from avmae.models.build import MaskSpec
    from avmae.viewing.systems import load_systems, reconstruct_files

    chosen = {key: value for key, value in (mask or {}).items() if value is not None}
    spec(MaskSpec, "mask", chosen)
    systems = load_systems([ckpt] if isinstance(ckpt, str | Path) else ckpt, chosen)
    return reconstruct_files(Path(input).expanduser(), systems, Path(output).expanduser(), **how)


@command("reconstruct")
def main(config: dict[str, Any]) -> None:
    """Reconstruct, and print the metrics."""
    found = reconstruct(**config)
    read = [(file.name, metrics) for file, metrics in found.items() if not isinstance(metrics, MediaError)]
    rows = [{"file": file, "system": name} | values for file, metrics in read for name, values in metrics.items()]
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name) for name in names] for row in rows]
    print_table(names, [[f"{v:.4g}" if isinstance(v, float) else v or "-" for v in row] for row in values])
    skipped = [printable(f"skipped: {error}\n") for error in found.values() if isinstance(error, MediaError)]
    print(*skipped, f"wrote {config['output']}: reconstruction.mp4, .png, metrics.json, and audio as WAV", sep="")


if __name__ == "__main__":
    main()
