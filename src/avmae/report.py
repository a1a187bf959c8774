"""`python -m avmae.report input=DIR`: one HTML file that shows what runs did."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import OmegaConf

from avmae.cli.command import command
from avmae.cli.config import configs
from avmae.errors import InputError
from avmae.runs.files import write_text
from avmae.runs.history import flat


def report(
    input: str | Path | Sequence[str | Path],
    output: str | Path = "report.html",
    *,
    reconstructions: str | Path | None = None,
    embed_mb: float = 8,
    clips: int = 6,
) -> Any:
    """Gather what lies in folders of runs, sweeps and studies, and write the page; see `python -m avmae.report -h`.

    Returns:
        The `avmae.viewing.report.Page`.

    Raises:
        InputError: a folder holds nothing that could be shown, a number is wrong, or the file cannot be written.
    """
    from avmae.viewing.report import build_page

    if not isinstance(clips, int) or clips < 0 or not isinstance(embed_mb, int | float):
        raise InputError("clips must be a whole number from 0, and embed_mb a number")
    inputs = [Path(p).expanduser() for p in ([input] if isinstance(input, str | Path) else input)]
    elsewhere, file = reconstructions and Path(reconstructions).expanduser(), Path(output).expanduser()
    if file.is_dir():
        raise InputError(f"output={file} is a folder; give a file, such as output={file}/report.html")
    with configs():
        defaults: Any = OmegaConf.to_container(compose("train"))
    page = build_page(inputs, elsewhere or None, embed_mb, clips, flat(defaults))
    write_text(file, page.html)
    return page


@command("report")
def main(config: dict[str, Any]) -> None:
    """Write the page, and print what is missing or broken."""
    page = report(**config)
    print(*page.notes, sep="\n", end="\n" * bool(page.notes))
    size = Path(config["output"]).expanduser().stat().st_size / 1e6
    print(f"wrote {config['output']}: {page.counted}{', ' * bool(page.counted)}{size:.1f} MB")


if __name__ == "__main__":
    main()
