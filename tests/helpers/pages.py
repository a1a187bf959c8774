"""The report as a page, and runs and studies written by hand in the formats of training and evaluation."""

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

from omegaconf import OmegaConf

import avmae.report

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page's elements, texts and links; fails where elements are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.texts.append(data.strip())

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def values(self, *names: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements for name in names if name in attrs]

    def after(self, heading: str) -> str:
        """HTML from a heading's text to the next of rank 2."""
        return self.html.split(f">{heading}", 1)[1].split("<h2", 1)[0]


def report(*inputs: Path, **settings) -> Page:
    with tempfile.TemporaryDirectory() as folder:
        page = avmae.report.report(inputs, Path(folder, "page.html"), **settings)
        assert Path(folder, "page.html").read_text() == page.html
    return Page(page.html)


def write_metrics(folder: Path, rows: Sequence[dict[str, float]]) -> None:
    names = ["epoch", "step", *sorted({name for row in rows for name in row} - {"epoch", "step"})]
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def write_run(folder: Path, overrides: Sequence[str] = (), final: float = 0.5, **config) -> Path:
    """A pretraining's folder as training leaves it, its loss falling to `final`."""
    (folder / ".hydra").mkdir(parents=True)
    standard = {"name": "pretrain", "logs": "logs", "seed": 0, "task": {"name": "pretrain"}, "mask": {"ratio": 0.75}}
    content = OmegaConf.merge(standard, config, OmegaConf.from_dotlist(list(overrides)))
    OmegaConf.save(content, folder / ".hydra/config.yaml")
    OmegaConf.save(list(overrides), folder / ".hydra/overrides.yaml")
    rows: list[dict[str, float]] = []
    for epoch in range(3):
        rows += [{"epoch": epoch, "step": 10 * epoch + 9, "train/loss": final + 2 - epoch, "train/lr": 1e-3}]
        rows += [{"epoch": epoch, "step": 10 * epoch + 9, "val/loss": final + 3 - epoch, "val/knn_top1": final / 2}]
    write_metrics(folder, rows)
    summary = {"train/loss": final, "train/lr": 1e-3, "val/loss": final + 1, "val/knn_top1": final / 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def results(classes: Sequence[str], confusion: Sequence[Sequence[int]], ckpt: str = "last.ckpt") -> dict:
    hits, clips = sum(row[i] for i, row in enumerate(confusion)), sum(map(sum, confusion))
    per_class = {
        name: {"top1": row[i] / sum(row), "clips": sum(row)}
        for i, (name, row) in enumerate(zip(classes, confusion, strict=True))
    }
    figures = {"ckpt": ckpt, "clips": clips, "unscored": 0, "top1": hits / clips, "top5": 1.0, "silent/top1": 0.25}
    return figures | {"per_class": per_class, "classes": list(classes), "confusion": [list(row) for row in confusion]}


def write_reconstruction(folder: Path, label: str = "avmae", size: int = 1000) -> None:
    folder.mkdir(parents=True)
    (folder / "reconstruction.mp4").write_bytes(b"video" * (size // 5))
    (folder / "reconstruction.png").write_bytes(b"picture")
    content = {
        "input": "clips/clip.avi",
        "mask": {"ratio": 0.9},
        "seed": 0,
        "systems": {label: {"video/psnr_hidden": 21.5, "audio/masked_mse": None}},
    }
    (folder / "metrics.json").write_text(json.dumps(content))


def study_rows() -> Iterator[dict]:
    for system, gain in (("VideoMAE", 0.0), ("AV-MAE", 0.1)):
        for seed in (0, 1):
            for kind, severity in (("clean", 0), ("blur", 1), ("blur", 2), ("noise", 0.1)):
                value = 0.6 + gain - 0.1 * severity + 0.02 * seed
                row = {"system": system, "seed": seed, "degradation": kind, "severity": severity}
                yield row | {"metric": "top1", "split": "all", "value": value}
    yield {
        "system": "AV-MAE",
        "seed": 0,
        "degradation": "clean",
        "severity": None,
        "metric": "top1",
        "split": "silent",
        "value": 0.5,
    }
