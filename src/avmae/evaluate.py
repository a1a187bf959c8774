"""`python -m avmae.evaluate ckpt=PATH data.root=DIR`: accuracy of a fine-tuned checkpoint on test clips."""

import json
from pathlib import Path
from typing import Any

from avmae.command import command, evaluation_data, precision, print_table, quiet_libraries
from avmae.errors import InputError


@command("evaluate")
def main(config: dict[str, Any]) -> None:
    """Score every test clip once over segments x crops; see `python -m avmae.evaluate --help`."""
    import lightning as L

    from avmae.models.classifier import Classifier
    from avmae.models.weights import load_model, read_checkpoint
    from avmae.training.callbacks import Progress, UnreadableClips
    from avmae.training.classification import Classification
    from avmae.training.optim import OptimSpec

    quiet_libraries()
    settings = read_checkpoint(config["ckpt"]).config
    model = load_model(config["ckpt"])
    datamodule = evaluation_data(settings, config["data"], model.encoder.modalities)
    if not datamodule.splits.test:
        raise InputError("the data set has no test clips; set data.test")
    if not isinstance(model, Classifier):
        return retrieve(model, datamodule, config)
    trainer = L.Trainer(
        accelerator=config["accelerator"],
        devices=1,
        precision=precision(config | {"precision": "auto"}),
        logger=False,
        callbacks=[UnreadableClips(config["max_unreadable"]), Progress()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    task = Classification(model, OptimSpec(base_lr=1.0), settings)
    trainer.test(task, datamodule=datamodule, verbose=False)

    results = task.results
    predictions, labels = results.pop("predictions").tolist(), [entry.label for entry in datamodule.splits.test]
    figures = {name: float(value) for name, value in results.items()}
    per_class = {}
    for label, name in enumerate(datamodule.classes):
        scored = [p == label for p, true in zip(predictions, labels, strict=True) if true == label and p >= 0]
        if scored:
            per_class[name] = {"top1": sum(scored) / len(scored), "clips": len(scored)}
    print_table(["class", "top1", "clips"], [[n, f"{c['top1']:.1%}", str(c["clips"])] for n, c in per_class.items()])
    print()
    print_table(["metric", "value"], [[n, f"{v:.1%}" if "top" in n else f"{v:g}"] for n, v in figures.items()])
    output = Path(config["output"] or Path(config["ckpt"]).parent.parent / "results.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(
        json.dumps({"ckpt": config["ckpt"], "data": config["data"], **figures, "per_class": per_class}, indent=2)
    )
    print(f"wrote {output}")


def retrieve(model: Any, datamodule: Any, config: dict[str, Any]) -> None:
    """For a pretraining checkpoint: find the sound of a clip by its pictures and the other way round."""
    from avmae.models.contrast import recall
    from avmae.training.embedding import embed

    if "audio" not in model.encoder.modalities:
        raise InputError(f"{config['ckpt']} is a pretraining checkpoint and knows no classes; fine-tune it first")
    embeddings = embed(model, datamodule, "test", config["max_unreadable"])
    kept = embeddings.scored & embeddings.has_audio
    figures = recall(embeddings.apart["video"][kept], embeddings.apart["audio"][kept])
    print(f"retrieval among {int(kept.sum())} test clips with sound; meant for models trained with task.contrast")
    print_table(["metric", "value"], [[name, f"{value:.1%}"] for name, value in figures.items()])
    output = Path(config["output"] or Path(config["ckpt"]).parent.parent / "results.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"ckpt": str(config["ckpt"]), "clips": int(kept.sum()), **figures}, indent=2))
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
