"""What `results.json` holds: what a model reaches on test clips, where that is written, and how it is shown."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from avmae.data.datamodule import ClipDataModule
from avmae.data.degrade import Degradation, all_degradations
from avmae.errors import InputError
from avmae.evaluation.batches import Inference
from avmae.evaluation.degraded import condition_name, degraded_rows, measure
from avmae.evaluation.embedding import Embedder, Embeddings, frozen_probes
from avmae.evaluation.metrics import metric_text
from avmae.evaluation.scores import FIGURES, confusion, per_class, per_tag
from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.classifier import Classifier
from avmae.models.contrast import recall
from avmae.models.hub import on_hub
from avmae.runs.files import write_json

Results = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]
"""Title, header and rows."""


def score_model(
    model: MaskedAutoencoder | Classifier,
    datamodule: ClipDataModule,
    degrade: str | Sequence[str],
    inference: Inference,
    probe: bool = False,
) -> Results:
    """A classifier's accuracy, or an autoencoder's retrieval between video and audio; and either on degraded clips.

    Args:
        model: in evaluation mode.
        datamodule: its test clips, segments and crops.
        degrade: `all`, or some as `blur:8`; `clean` for the error of masked patches of an autoencoder on clean clips.
        inference: device, precision, progress.
        probe: also score `frozen_probes`, which read the training clips.

    Raises:
        InputError: there are no test clips, or not of the model's classes; too many cannot be read; an autoencoder has
            nothing to retrieve, and neither degradations nor probes are asked for.
    """
    asked = [degrade] if isinstance(degrade, str) else [str(text) for text in degrade]
    degradations = all_degradations() if "all" in asked else [Degradation.parse(x) for x in asked if x != "clean"]
    classifies = isinstance(model, Classifier)
    conditions = [None, *degradations] if asked or classifies else []
    embedder = Embedder(len(datamodule.splits.test)) if "audio" in model.encoder.modalities and not classifies else None
    datamodule.require_test()
    if isinstance(model, Classifier) and len(datamodule.classes) != model.classes:
        raise InputError(
            f"the data set has {len(datamodule.classes)} classes, the classifier {model.classes}; "
            "fine-tune on this data set first, or evaluate on the one it was trained on"
        )
    if isinstance(model, Classifier) and datamodule.splits.many_labels and not model.many_labels:
        raise InputError("the classifier knows one class a clip, and test clips have many labels; train with task=tag")
    if not conditions and embedder is None and not probe:
        raise InputError(
            "a pretraining checkpoint of video alone knows no classes; fine-tune it first, or give degrade= or "
            "probe=true"
        )
    found = measure(model, datamodule, conditions, inference, embedder) if conditions or embedder else []
    results = classification(found[0], datamodule) if classifies else retrieval(embedder.compute()) if embedder else {}
    results |= {"degraded": degraded_rows(conditions, found)} if asked else {}
    return results | (frozen_probes(model, datamodule, inference) if probe else {})


def classification(found: Results, datamodule: ClipDataModule) -> Results:
    """Accuracies as shares of 1, over all clips, over those with and without audio, and by class, from `ClipScores`.

    And each test clip's class as predicted, -1 where it has no score, and as labelled. Of clips with many labels what
    `TagScores` finds instead, over all and by class.
    """
    figures: Results = {k: float(v) for k, v in found.items() if k.rpartition("/")[2] in FIGURES}
    figures |= {k: found[k] for k in ("clips", "unscored")}
    if "by_class" in found:
        return {**figures, "per_class": per_tag(found["by_class"], datamodule.classes), "classes": datamodule.classes}
    labels, classes = datamodule.splits.targets("test").tolist(), datamodule.classes
    counts = confusion(found["predictions"], labels, len(classes))
    clips, hits = counts.sum(1), counts.diagonal()
    # Whole classes, of UCF101 the 51 with audio and the 50 without: a few silent clips do not leave their class.
    with_audio = torch.from_numpy(found["has_audio"] & (found["predictions"] >= 0))
    most = torch.bincount(torch.tensor(labels)[with_audio], minlength=len(classes)) * 2 > clips
    for name, chosen in (("sound_classes", most), ("silent_classes", ~most & (clips > 0))):
        if chosen.any():
            figures[f"{name}/top1"] = float(hits[chosen].sum() / clips[chosen].sum())
    by_class = {"per_class": per_class(counts, classes), "classes": classes, "confusion": counts.tolist()}
    return {**figures, **by_class, "predictions": found["predictions"].tolist(), "labels": labels}


def retrieval(embeddings: Embeddings) -> Results:
    """How well a clip's audio is found by its video and the other way round, and among how many `clips` with audio."""
    kept = embeddings.scored & embeddings.has_audio
    figures = recall(embeddings.apart["video"][kept], embeddings.apart["audio"][kept]) if kept.any() else {}
    return {"clips": int(kept.sum()), **figures}


def average(results: Sequence[Results]) -> dict[str, float]:
    """Means of the figures that all have: checkpoints of different kinds are scored differently."""
    names = [name for name in figure_names(results) if all(name in result for result in results)]
    return {name: mean(result[name] for result in results) for name in names}


def figure_names(results: Sequence[Results]) -> list[str]:
    """Names of the figures that any of the results has."""
    return list(dict.fromkeys(name for found in results for name, value in found.items() if isinstance(value, float)))


def result_files(ckpts: Sequence[str], output: str | None) -> tuple[list[Path], Path]:
    """Where the results of each checkpoint are written, if each has its own besides those of all; and those of all.

    Of several runs each has its own, and the folder above them the mean.
    """
    own = [_run_of(ckpt) / "results.json" for ckpt in ckpts]
    separate = len(own) > 1 and len(set(own)) == len(own) and not output
    above = Path(os.path.commonpath([file.parent for file in own])) / "results.json"
    return own if separate else [], Path(output or above).expanduser()


def _run_of(ckpt: str) -> Path:
    """The folder of a checkpoint's run; of one that is in none, the folder that it is or is in."""
    if on_hub(ckpt):
        return Path.cwd()
    path = Path(ckpt).expanduser().absolute()
    if path.parent.name == "checkpoints":
        return path.parent.parent
    return path if path.is_dir() else path.parent


def write_results(results: Sequence[Results], own: Sequence[Path], output: Path) -> None:
    """Write what `result_files` names; several checkpoints' results are the means and the `runs` that they are of."""
    content = results[0] if len(results) == 1 else average(results) | {"runs": results}
    for file, result in [*zip(own, results, strict=False), (output, content)]:
        write_json(file, result)


def result_tables(results: Sequence[Results], last: bool = True) -> Iterator[Table]:
    """Of the newest results by class, the figures, and by degradation; of several, if those are all, the means."""
    result = results[-1]
    if by_class := result.get("per_class"):
        columns = list(dict.fromkeys(key for found in by_class.values() for key in found))
        rows = [
            [name, *(metric_text(c, found[c]) if c in found else "" for c in columns)]
            for name, found in by_class.items()
        ]
        yield "", ["class", *columns], rows
    if figures := {name: value for name, value in result.items() if isinstance(value, float | int)}:
        among = f"retrieval among {result.get('clips', 0)} test clips with audio"
        title = "" if by_class else f"{among}; meant for models trained with task.contrast"
        yield title, ["metric", "value"], [[name, metric_text(name, value)] for name, value in figures.items()]
    table: dict[str, dict[str, str]] = {}
    for row in result.get("degraded", ()):
        column = row["metric"] if row["subset"] == "all" else f"{row['subset']}/{row['metric']}"
        if row["metric"] != "top5":
            condition = condition_name(row["degradation"], row["severity"])
            table.setdefault(condition, {})[column] = metric_text(row["metric"], row["value"])
    if table:
        columns = list(dict.fromkeys(name for row in table.values() for name in row))
        yield "", ["degraded", *columns], [[line, *(row[c] for c in columns)] for line, row in table.items()]
    if last and len(results) > 1:
        names = figure_names(results)
        lines = [*((found["ckpt"], found) for found in results), ("mean", average(results))]
        cells = [[first, *(metric_text(n, line[n]) if n in line else "" for n in names)] for first, line in lines]
        yield "", ["checkpoint", *names], cells
