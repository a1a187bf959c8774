"""`python -m avmae.export ckpt=PATH output=DIR`: a model for use elsewhere."""

import json
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError


@command("export")
def main(config: dict[str, Any]) -> None:
    """Write weights and config, and a classifier's program; see `python -m avmae.export --help`."""
    import torch

    from avmae.models.classifier import Classifier
    from avmae.models.layouts import to_transformers, transformers_config
    from avmae.models.tokens import grid_positions
    from avmae.models.weights import load_model, read_checkpoint, write_safetensors

    checkpoint = read_checkpoint(config["ckpt"])
    model = load_model(config["ckpt"])
    output = Path(config["output"]).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output={output} is not an empty folder; choose a new one")
    weights, theirs = model.state_dict(), transformers_config(checkpoint.config)
    pictures = model.encoder.modalities["video"]
    if not torch.allclose(pictures.positions, grid_positions(pictures.grid.size, model.encoder.dim), atol=1e-5):
        # transformers computes its table; this one came from an image model.
        theirs = None
    if theirs:
        weights = to_transformers(weights, checkpoint.config["model"]["video_patch"])
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_safetensors(weights, output / "model.safetensors", {"format": "pt"})
        content = json.dumps((theirs or {}) | {"avmae": checkpoint.config}, indent=2)
        (output / "config.json").write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}") from error
    written = ["model.safetensors", "config.json"]
    if isinstance(model, Classifier):
        clips = 2  # of one clip, the program would be for one clip alone
        example = {
            name: torch.zeros(
                clips, encoder.grid.channels, encoder.grid.stack * encoder.grid.shape[0], *encoder.grid.shape[1:]
            )
            for name, encoder in model.encoder.modalities.items()
        } | {"has_audio": torch.ones(clips, dtype=torch.bool)}
        batch = torch.export.Dim("clips", min=1)
        program = torch.export.export(model, (example,), dynamic_shapes=({name: {0: batch} for name in example},))
        torch.export.save(program, output / "classifier.pt2")
        written.append("classifier.pt2")
    if theirs:
        print(f"transformers reads it: {theirs['architectures'][0]}.from_pretrained({str(output)!r})")
    print(f"wrote {output}: {', '.join(written)}")


if __name__ == "__main__":
    main()
