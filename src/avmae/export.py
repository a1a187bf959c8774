"""`python -m avmae.export ckpt=PATH output=DIR`: a model for use elsewhere."""

from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError


def export(ckpt: str | Path, output: str | Path, format: str = "torch") -> tuple[list[str], str | None]:
    """Write weights and config, and a classifier's program as `torch` or `onnx`, to a new or empty folder.

    Returns the files' names, and the class of transformers that reads them, if there is one.
    """
    from avmae.data.spectrogram import LogMel
    from avmae.models.classifier import Classifier
    from avmae.models.describe import transformers_config, transformers_processor
    from avmae.models.hub import PROCESSOR
    from avmae.models.layouts import to_transformers
    from avmae.models.program import check_format, write_program
    from avmae.models.tokens import grid_positions
    from avmae.models.weights import load_with_config, write_safetensors
    from avmae.runs.files import write_json

    (model, config), folder = load_with_config(ckpt), Path(output).expanduser()
    check_format(format)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output={output} is not an empty folder; choose a new one")
    theirs, video, own = transformers_config(config), model.encoder.modalities["video"], model.state_dict()
    if not video.positions.allclose(grid_positions(video.grid, model.encoder.dim), atol=1e-5):
        # transformers computes its table; this one came from an image model.
        theirs = None
    weights = to_transformers(own, config["model"]["video_patch"]) if theirs else own
    written = {"config.json": (theirs or {}) | {"avmae": config}}
    written |= {PROCESSOR: transformers_processor(config)} if theirs else {}
    for name, content in written.items():
        write_json(folder / name, content)
    write_safetensors(weights, folder / "model.safetensors", {"format": "pt"})
    files = ["model.safetensors", *written]
    if isinstance(model, Classifier):
        files.append(write_program(model, LogMel(model.clip), folder, format))
    return files, (theirs["architectures"][0] if theirs else None)


@command("export")
def main(config: dict[str, Any]) -> None:
    """Write weights and config, and a classifier's program; see `python -m avmae.export --help`."""
    from avmae.viewing.card import publish

    files, architecture = export(config["ckpt"], config["output"], config["format"])
    if architecture:
        print(f"transformers reads it: {architecture}.from_pretrained({str(config['output'])!r})")
    print(f"wrote {config['output']}: {', '.join(files)}")
    if config["push"]:
        print(f"pushed to {publish(Path(config['output']).expanduser(), config['ckpt'], config['push'])}")


if __name__ == "__main__":
    main()
