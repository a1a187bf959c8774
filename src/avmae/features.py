"""`python -m avmae.features ckpt=PATH output=FILE`: one embedding of every clip, and what they know of the classes."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmae.cli.command import command
from avmae.cli.config import check_writable, chosen_data
from avmae.cli.table import print_table
from avmae.errors import InputError

if TYPE_CHECKING:
    from avmae.evaluation.embedding import Features


def features(
    ckpt: str | Path, data: Mapping[str, Any] | None = None, typed: Collection[str] | None = None, **how: Any
) -> "Features":
    """Embed the clips of all parts, nothing masked, averaged over segments x crops.

    Args:
        ckpt: of an autoencoder or a classifier.
        data: settings in which the data differ from the checkpoint's, as `{"root": DIR}`.
        typed: which of `data` were chosen, where the others are defaults; see `evaluation_data`.
        how: `accelerator`, `precision`, `max_unreadable` and `progress`, see `Inference`.
    """
    from avmae.evaluation.batches import Inference
    from avmae.evaluation.data import evaluation_data
    from avmae.evaluation.embedding import embed_parts
    from avmae.models.weights import load_with_config

    inference, (model, trained) = Inference(**how), load_with_config(ckpt)
    return embed_parts(model, evaluation_data(trained, data or {}, model.encoder.modalities, ckpt, typed), inference)


@command("features")
def main(config: dict[str, Any]) -> None:
    """Write the embeddings and print their k-NN accuracy; see `python -m avmae.features --help`."""
    output = Path(config["output"]).expanduser()
    if output.suffix != ".safetensors":
        raise InputError(f"output={output} must end in .safetensors, for that is what is written")
    if not output.parent.is_dir():
        raise InputError(f"output={output}: the folder {output.parent} does not exist; make it or choose another")
    check_writable(output)
    how = {key: config[key] for key in ("accelerator", "precision", "max_unreadable")}
    given, typed = chosen_data(config["data"])
    found = features(config["ckpt"], given, typed, progress=True, **how)
    found.save(output, str(config["ckpt"]))
    print_table(["part", "clips"], [[part, str(len(paths))] for part, paths in found.clips.items()])
    top1 = found.knn_top1(config["neighbours"], config["temperature"])
    if top1 is not None:
        print(f"k-NN from train to test, {config['neighbours']} neighbours: top-1 {top1:.1%}")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
