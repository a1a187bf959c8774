"""`python -m avmae.report input=DIR`: one HTML file that shows what runs did."""

from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError
from avmae.runs.history import flat
from avmae.viewing.report import build, render


@command("report")
def main(config: dict[str, Any]) -> None:
    """Gather what lies in the folders and write the page; see `python -m avmae.report --help`."""
    output = Path(config["output"]).expanduser()
    if output.is_dir():
        raise InputError(f"output={output} is a folder; give a file, such as output={output}/report.html")
    page = build(config, defaults())
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(render(page), encoding="utf-8")
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}; choose another") from error
    for section in page["runs"]:
        for note in section["run"].notes:
            print(f"{section['run'].label}: {note}")
    print(f"wrote {output}: {page['counted']}{', ' * bool(page['counted'])}{output.stat().st_size / 1e6:.1f} MB")


def defaults() -> dict[str, Any]:
    """What `python -m avmae.train` does without any argument, by dotted key."""
    from hydra import compose
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(compose("train"))
    assert isinstance(content, dict)
    return flat({str(key): value for key, value in content.items()})


if __name__ == "__main__":
    main()
