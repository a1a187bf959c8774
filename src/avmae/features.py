"""`python -m avmae.features ckpt=PATH output=FILE`: one embedding of every clip, and what they know of the classes."""

import json
from pathlib import Path
from typing import Any

from avmae.cli.command import command, quiet_libraries
from avmae.cli.config import check_writable, chosen_data
from avmae.cli.table import print_table
from avmae.errors import InputError
from avmae.evaluation.data import evaluation_data
from avmae.training.hardware import precision


@command("features")
def main(config: dict[str, Any]) -> None:
    """Embed the clips of all parts with nothing hidden; see `python -m avmae.features --help`.

    An embedding is the mean token of each modality after fusion, one behind the other, averaged over segments x crops.
    The file holds `PART/features` (N, D) float32 and `PART/labels` (N,) int64 for the parts train, val and test, and
    the clips' paths and the classes' names as JSON in its metadata.
    """
    import torch

    from avmae.evaluation.embedding import embed
    from avmae.evaluation.probes import knn_votes
    from avmae.models.weights import load_model, read_checkpoint, write_safetensors

    quiet_libraries()
    output = Path(config["output"]).expanduser()
    if output.suffix != ".safetensors":
        raise InputError(f"output={output} must end in .safetensors, for that is what is written")
    if not output.parent.is_dir():
        raise InputError(f"output={output}: the folder {output.parent} does not exist; make it or choose another")
    check_writable(output)
    settings = read_checkpoint(config["ckpt"]).config
    model = load_model(config["ckpt"])
    given, typed = chosen_data(config["data"])
    datamodule = evaluation_data(settings, given, model.encoder.modalities, config["ckpt"], typed)
    tensors, clips = {}, {}
    for part in ("train", "val", "test"):
        entries = getattr(datamodule.splits, part)
        if entries:
            how = (config["max_unreadable"], config["accelerator"], precision(config))
            embeddings = embed(model, datamodule, part, *how)
            scored = embeddings.scored
            tensors[f"{part}/features"] = embeddings.fused[scored]
            tensors[f"{part}/labels"] = torch.tensor([entry.label for entry in entries])[scored]
            clips[part] = [str(entry.path) for entry, kept in zip(entries, scored.tolist(), strict=True) if kept]
    metadata = {"clips": json.dumps(clips), "classes": json.dumps(datamodule.classes), "ckpt": str(config["ckpt"])}
    write_safetensors(tensors, output, metadata)
    print_table(["part", "clips"], [[part, str(len(paths))] for part, paths in clips.items()])
    print(f"each the mean of {datamodule.loading.segments} x {datamodule.loading.crops} views (segments x crops)")
    if clips.get("train") and clips.get("test"):
        bank = torch.nn.functional.normalize(tensors["train/features"], dim=1)
        votes = knn_votes(
            tensors["test/features"],
            bank,
            tensors["train/labels"],
            len(datamodule.classes),
            config["neighbours"],
            config["temperature"],
        )
        top1 = (votes.argmax(1) == tensors["test/labels"]).float().mean().item()
        print(f"k-NN from train to test, {config['neighbours']} neighbours: top-1 {top1:.1%}")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
