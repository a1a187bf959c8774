"""`python -m avmae.export ckpt=PATH output=DIR`: a model for use elsewhere."""

import json
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError


def export(ckpt: str | Path, output: str | Path, format: str = "torch") -> tuple[list[str], str | None]:
    """Write weights and config, and a classifier's program as `torch` or `onnx`, to a new or empty folder.

    Returns the files' names, and the class of transformers that reads them, if there is one.
    """
    import torch

    from avmae.data.spectrogram import LogMel
    from avmae.models.classifier import Classifier
    from avmae.models.describe import transformers_config
    from avmae.models.layouts import to_transformers
    from avmae.models.program import PROGRAMS, write_program
    from avmae.models.tokens import grid_positions
    from avmae.models.weights import load_with_config, write_safetensors

    (model, config), folder = load_with_config(ckpt), Path(output).expanduser()
    if format not in PROGRAMS:
        raise InputError(f"format={format} is unknown; choose {' or '.join(PROGRAMS)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"output={output} is not an empty folder; choose a new one")
    theirs, video, own = transformers_config(config), model.encoder.modalities["video"], model.state_dict()
    if not torch.allclose(video.positions, grid_positions(video.grid, model.encoder.dim), atol=1e-5):
        # transformers computes its table; this one came from an image model.
        theirs = None
    weights = to_transformers(own, config["model"]["video_patch"]) if theirs else own
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps((theirs or {}) | {"avmae": config}, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}") from error
    files = ["model.safetensors", "config.json"]
    if isinstance(model, Classifier):
        write_program(model, LogMel(model.clip), folder / PROGRAMS[format])
        files.append(PROGRAMS[format])
    return files, (theirs["architectures"][0] if theirs else None)


@command("export")
def main(config: dict[str, Any]) -> None:
    """Write weights and config, and a classifier's program; see `python -m avmae.export --help`."""
    files, architecture = export(config["ckpt"], config["output"], config["format"])
    if architecture:
        print(f"transformers reads it: {architecture}.from_pretrained({str(config['output'])!r})")
    print(f"wrote {config['output']}: {', '.join(files)}")
    if config["push"]:
        from avmae.viewing.card import publish

        print(f"pushed to {publish(Path(config['output']).expanduser(), config['ckpt'], config['push'])}")


if __name__ == "__main__":
    main()
