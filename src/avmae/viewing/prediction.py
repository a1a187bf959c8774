"""The most probable classes of videos, as text and as files."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from avmae.data.decode.window import read_window
from avmae.data.read import window_batch
from avmae.errors import InputError, MediaError, printable
from avmae.runs.files import write_text
from avmae.viewing.systems import folders_of, load_classifier, top_classes

FORMATS = (".csv", ".json")
COLUMNS = ("file", "has_audio", "rank", "class", "label", "score")


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of a video: `class`, `label` and `score` of the first classes, best first."""

    has_audio: bool
    classes: list[dict[str, Any]]


Predictions = Mapping[Path, Prediction | MediaError]
"""By file; of one that cannot be read, why."""


def videos_of(source: Path) -> list[Path]:
    """The video, or all videos below a folder.

    Raises:
        InputError: a folder holds none.
    """
    return list(folders_of(source, source)) if source.is_dir() else [source]


def predict_files(
    ckpt: str | Path, files: Iterable[Path], top: int = 5, segments: int = 5, crops: int = 3
) -> Iterator[tuple[Path, Prediction | MediaError]]:
    """Average the class probabilities of each video over evenly spaced windows and crops of each.

    Args:
        ckpt: of a classifier.
        files: videos.
        top: how many classes are kept, the best first.
        segments: windows of each video.
        crops: square crops of each window.

    Raises:
        InputError: a number is out of range, or the checkpoint is no classifier.
    """
    for key, value in {"top": top, "segments": segments, "crops": crops}.items():
        if not isinstance(value, int) or value < 1:
            raise InputError(f"{key}={value} must be a whole number from 1")
    model, settings = load_classifier(ckpt)
    for file in files:
        probabilities, has_audio = [], False
        try:
            for position in torch.linspace(0, 1, segments).tolist() if segments > 1 else [0.5]:
                window = read_window(file, model.clip, position, model.clip.canvas)
                has_audio |= window.has_audio
                with torch.inference_mode():
                    logits = model(window_batch(window, model.clip, crops))
                    probabilities.append(model.probabilities(logits).mean(0))
        except MediaError as error:
            yield file, error
        else:
            mean = torch.stack(probabilities).mean(0)
            yield file, Prediction(has_audio, top_classes(mean, settings["class_names"], top))


def as_json(found: Predictions, source: Path | None = None) -> Any:
    """An entry for each video, or the one that is the source itself; with an `error` if it cannot be read."""
    entries = [
        {"input": str(file)} | ({"error": str(said)} if isinstance(said, MediaError) else asdict(said))
        for file, said in found.items()
    ]
    return entries if source is None or source.is_dir() else entries[0]


def check_format(output: Path) -> None:
    """Refuse a file that `write_predictions` would not know how to write."""
    if output.suffix.lower() not in FORMATS:
        raise InputError(f"output={output} must end in {' or '.join(FORMATS)}")


def tables(found: Predictions, source: Path) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows: of one video its classes, of a folder the best class of each video that can be read."""
    read = {file: said for file, said in found.items() if isinstance(said, Prediction)}
    if source.is_dir():
        rows = [
            [str(file.relative_to(source)), "with audio" if said.has_audio else "silent", best["class"], _score(best)]
            for file, said in read.items()
            for best in said.classes[:1]
        ]
        yield printable(f"{len(read)} videos in {source}"), ["file", "", "class", "score"], rows
        return
    for file, said in read.items():
        title = f"{printable(file)} ({'with audio' if said.has_audio else 'silent'})"
        yield title, ["class", "score"], [[row["class"], _score(row)] for row in said.classes]


def _score(row: Mapping[str, Any]) -> str:
    return f"{row['score']:.3f}"


def write_predictions(found: Predictions, output: Path) -> None:
    """Write `as_json`, or a CSV file with a line for each video and class, by the file's ending.

    Raises:
        InputError: it cannot be written.
    """
    if output.suffix.lower() == ".json":
        write_text(output, json.dumps(as_json(found), indent=2) + "\n")
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for file, said in found.items():
        if isinstance(said, MediaError):
            continue
        for rank, row in enumerate(said.classes, 1):
            writer.writerow([file, said.has_audio, rank, row["class"], row["label"], f"{row['score']:.6f}"])
    write_text(output, text.getvalue())
