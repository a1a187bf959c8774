"""`python -m avmae.evaluate ckpt=PATH data.root=DIR`: what a checkpoint reaches on test clips."""

import json
import os
from pathlib import Path
from statistics import mean
from typing import Any

from avmae.cli.command import command, quiet_libraries
from avmae.cli.config import check_writable, chosen_data
from avmae.cli.table import print_table
from avmae.errors import InputError
from avmae.evaluation.data import evaluation_data
from avmae.training.hardware import precision


@command("evaluate")
def main(config: dict[str, Any]) -> None:
    """Score every test clip once over segments x crops; see `python -m avmae.evaluate --help`."""
    quiet_libraries()
    paths = config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]]
    own = [run_of(path) / "results.json" for path in paths]
    # Of several runs, each gets its own results, and what is above them the mean.
    separate = len(own) > 1 and len(set(own)) == len(own) and not config["output"]
    above = Path(os.path.commonpath([file.parent for file in own])) / "results.json"
    output = Path(config["output"] or above).expanduser()
    # Before the hours that scoring may take.
    for file in {*(own if separate else ()), output}:
        if config["output"] or file.parent.exists():
            check_writable(file)
    results = [score(path, config) for path in paths]
    names = list(dict.fromkeys(name for result in results for name in result if isinstance(result[name], float)))
    # Not all have all: checkpoints of different kinds are scored differently.
    average = {name: mean(result[name] for result in results) for name in names if all(name in r for r in results)}
    content = results[0] if len(results) == 1 else average | {"runs": results}
    for file, result in [*(zip(own, results, strict=True) if separate else ()), (output, content)]:
        try:
            file.write_text(json.dumps(result, indent=2), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror}; choose another output=") from error
    if len(results) > 1:
        print()
        lines = [*zip(map(str, paths), results, strict=True), ("mean", average)]
        cells = [[first, *(f"{line[n]:.1%}" if n in line else "" for n in names)] for first, line in lines]
        print_table(["checkpoint", *names], cells)
    print(f"wrote {output}")


def run_of(ckpt: str) -> Path:
    """The folder of a checkpoint's run; of one that is in none, the folder that it is or is in."""
    path = Path(ckpt).expanduser().absolute()
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path if path.is_dir() else path.parent


def score(ckpt: str, config: dict[str, Any]) -> dict[str, Any]:
    """Results of one checkpoint: a classifier's accuracy, or a pretraining's retrieval."""
    from avmae.data.degrade import Degradation, all_degradations
    from avmae.evaluation.degraded import score_degraded
    from avmae.models.classifier import Classifier
    from avmae.models.weights import load_model, read_checkpoint

    asked = config["degrade"] or []
    if isinstance(asked, str) and asked != "all":
        asked = [asked]
    degradations = all_degradations() if asked == "all" else [Degradation.parse(str(text)) for text in asked]
    model = load_model(ckpt)
    settings = read_checkpoint(ckpt).config
    given, typed = chosen_data(config["data"])
    # Audio is read whatever the system, for results are told apart by whether a clip has it.
    datamodule = evaluation_data(settings, given, ["video", "audio"], ckpt, typed, test_only=True)
    datamodule.require_test()
    views = f"{datamodule.loading.segments} x {datamodule.loading.crops} views each (segments x crops)"
    print(f"{len(datamodule.splits.test)} test clips, {views}")
    result: dict[str, Any] = {"ckpt": str(ckpt)}
    if isinstance(model, Classifier):
        result |= classify(ckpt, model, settings, datamodule, config)
    elif "audio" in model.encoder.modalities or not degradations:
        result |= retrieve(ckpt, model, settings, datamodule, config)
    if degradations:
        how = (config["max_unreadable"], config["accelerator"], precision(config))
        rows = score_degraded(model, datamodule, degradations, *how)
        print()
        print_degraded(rows)
        result["degraded"] = rows
    return result


def print_degraded(rows: list[dict[str, Any]]) -> None:
    """A line for each degradation, a column for each metric and subset."""
    from avmae.evaluation.degraded import condition_name

    table: dict[str, dict[str, str]] = {}
    for row in rows:
        line = condition_name(row["degradation"], row["severity"])
        column = row["metric"] if row["subset"] == "all" else f"{row['subset']}/{row['metric']}"
        if row["metric"] != "top5":
            text = f"{row['value']:.1%}" if row["metric"] == "top1" else f"{row['value']:.4f}"
            table.setdefault(line, {})[column] = text
    columns = list(dict.fromkeys(name for cells in table.values() for name in cells))
    print_table(["degraded", *columns], [[line, *(cells[c] for c in columns)] for line, cells in table.items()])


def classify(
    ckpt: str, model: Any, settings: dict[str, Any], datamodule: Any, config: dict[str, Any]
) -> dict[str, Any]:
    """Accuracies as shares of 1, over all clips, over those with and without sound, and by class."""
    import lightning as L
    import torch

    from avmae.evaluation.scores import confusion, per_class
    from avmae.training.classification import Classification
    from avmae.training.optim import OptimSpec
    from avmae.training.progress import Progress
    from avmae.training.unreadable import UnreadableClips

    trainer = L.Trainer(
        accelerator=config["accelerator"],
        devices=1,
        precision=precision(config),
        logger=False,
        callbacks=[UnreadableClips(config["max_unreadable"]), Progress()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    task = Classification(model, OptimSpec(base_lr=1.0), settings)
    trainer.test(task, datamodule=datamodule, verbose=False)

    results, classes = task.results, datamodule.classes
    predictions, sounding = results.pop("predictions"), torch.from_numpy(results.pop("sounding"))
    labels = [entry.label for entry in datamodule.splits.test]
    counts = confusion(predictions, labels, len(classes))
    clips, hits, by_class = counts.sum(1), counts.diagonal(), per_class(counts, classes)
    # Whole classes, of UCF101 the 51 with sound and the 50 without: a few silent clips do not leave their class.
    scored = torch.from_numpy(predictions) >= 0
    heard = torch.bincount(torch.tensor(labels)[sounding & scored], minlength=len(classes)) * 2 > clips
    for name, chosen in (("sound_classes", heard), ("silent_classes", ~heard & (clips > 0))):
        if chosen.any():
            results[f"{name}/top1"] = float(hits[chosen].sum() / clips[chosen].sum())
    figures = {name: float(value) if "top" in name else int(value) for name, value in results.items()}
    print_table(["class", "top1", "clips"], [[n, f"{c['top1']:.1%}", str(c["clips"])] for n, c in by_class.items()])
    print()
    print_table(["metric", "value"], [[n, f"{v:.1%}" if "top" in n else f"{v}"] for n, v in figures.items()])
    return {**figures, "per_class": by_class, "classes": classes, "confusion": counts.tolist()}


def retrieve(
    ckpt: str, model: Any, settings: dict[str, Any], datamodule: Any, config: dict[str, Any]
) -> dict[str, Any]:
    """Find the sound of a clip by its pictures and the other way round."""
    from avmae.evaluation.embedding import embed
    from avmae.models.contrast import recall

    if "audio" not in model.encoder.modalities:
        raise InputError(f"{ckpt} is a pretraining checkpoint and knows no classes; fine-tune it first")
    how = (config["max_unreadable"], config["accelerator"], precision(config))
    embeddings = embed(model, datamodule, "test", *how)
    kept = embeddings.scored & embeddings.has_audio
    if not kept.any():
        print("no test clip has sound, so there is nothing to retrieve")
        return {"clips": 0}
    figures = recall(embeddings.apart["video"][kept], embeddings.apart["audio"][kept])
    print(f"retrieval among {int(kept.sum())} test clips with sound; meant for models trained with task.contrast")
    print_table(["metric", "value"], [[name, f"{value:.1%}"] for name, value in figures.items()])
    return {"clips": int(kept.sum()), **figures}


if __name__ == "__main__":
    main()
