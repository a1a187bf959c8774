"""What the report shows, of runs written by hand in the formats of training and evaluation, and of a real sweep."""

import base64
import csv
import importlib.metadata
import json
import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from commands import error, run, train
from omegaconf import OmegaConf

import avmae.report
from avmae.errors import InputError
from avmae.evaluation.metrics import is_share
from avmae.runs.history import read_run, read_study
from avmae.viewing.plots import colours, study_figure, study_points, write_png

EVIL = "<script>alert(1)</script>"
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


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "logs/pretrain/2026-01-01_00-00-00_sweep"
    # Typed in this order; the eleventh job must not come before the third.
    for job, ratio in enumerate(["0.9", "0.3", "0.5", "0.6", "0.75"]):
        write_run(folder / str(job + 7), ["data.root=DIR", f"mask.ratio={ratio}"], final=float(ratio))
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    return folder


def test_a_sweep_is_plotted_against_its_key_and_every_job_is_linked(sweep: Path) -> None:
    page = report(sweep)
    labels = [f"mask.ratio={ratio}" for ratio in ("0.3", "0.5", "0.6", "0.75", "0.9")]
    anchors = {f"#run-{number}" for number in range(1, 6)}
    assert [text for text in page.texts if text in labels][:5] == labels, "in the order of the ratio"
    assert anchors <= {f"#{name}" for name in page.values("id")}
    panels = page.after("Results against mask.ratio").split("<figure>")[1:]
    assert [re.findall(r"<figcaption>(.*?)</", panel)[0] for panel in panels] == [
        "Loss, validation",
        "k-NN accuracy, validation",
    ]
    for panel in panels:
        assert {f"#{link}" for link in re.findall(r'xlink:href="#(run-\d)"', panel)} == anchors
    # 0.9 has the highest loss and the highest accuracy: only the latter is the best of something.
    assert re.findall(r'class="best">([^<]*)<', page.html) == ["45.0%"]
    assert "under other masks they measure another task" in page.text


def test_runs_overlay_in_one_plot_in_the_colours_of_their_legend(sweep: Path) -> None:
    page = report(sweep)
    section = page.after("Pretraining curves")
    legend, *panels = section.split("<figure>")
    shades = re.findall(r'style="background:(#\w{6})"', legend)
    assert len(set(shades)) == 5
    assert [re.findall(r"<figcaption>(.*?)</", panel)[0] for panel in panels] == [
        "Loss",
        "k-NN accuracy",
        "Learning rate",
    ]
    for panel in panels:
        assert set(shades) <= set(re.findall(r"stroke: (#\w{6})", panel))
    # Training and validation: two lines a run.
    lines = re.findall(rf'<path d="M[^"]*L[^"]*"[^>]*style="fill: none; stroke: (?:{"|".join(shades)})', panels[0])
    assert len(lines) == 10


def test_the_page_needs_nothing_else(sweep: Path) -> None:
    write_reconstruction(sweep / "7/reconstruction")
    page = report(sweep)
    links = page.values("src", "href", "xlink:href", "data", "action", "poster", "srcset")
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import", page.html)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.elements}
    targets = {link for link in links if link.startswith("#")}
    assert targets <= {f"#{name}" for name in page.values("id")}
    assert not page.values("target"), "links stay in the window"
    assert len(page.values("id")) == len(set(page.values("id"))), "figures do not borrow from each other"
    policy = next(attrs for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_seeds_of_a_sweep_become_a_deviation_and_other_keys_lines(tmp_path: Path) -> None:
    for job, (system, ratio, seed) in enumerate((s, r, n) for s in ("a", "b") for r in (0.5, 0.9) for n in (0, 1)):
        overrides = [f"seed={seed}", f"model.name={system}", f"mask.ratio={ratio}"]
        write_run(tmp_path / str(job), overrides, final=ratio + seed / 10)
    (tmp_path / "sweep.csv").write_text("job\n")
    # What system a has no score of.
    for job in range(4):
        without = {"train/loss": 1.0, "val/loss": 2.0}
        (tmp_path / str(job) / "summary.json").write_text(json.dumps(without))
        write_metrics(tmp_path / str(job), [{"epoch": 0, "step": 9, **without}])
    section = report(tmp_path).after("Results against mask.ratio")
    assert ">model.name=a<" in section
    assert ">model.name=b<" in section
    assert "deviation over seeds" in section
    shades = re.findall(r'style="background:(#\w{6})"', section.lower())[:2]
    loss, accuracy = (set(re.findall(r"stroke: (#\w{6})", panel)) for panel in section.split("<figure>")[1:3])
    assert set(shades) <= loss
    assert shades[1] in accuracy
    assert shades[0] not in accuracy, "a line has one colour in all panels"


def test_settings_other_than_default_and_those_that_differ(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, [f"model.name={name}"], name=name, clip={"frames": 8}) for name in ("one", "two")
    ]
    page = report(*runs)
    differing, shared = page.after("Settings").split("Shared by all runs")
    assert re.search(r"<td>.*model\.name.*</td>|<th>model\.name</th>", differing)
    assert "clip.frames" not in differing
    assert re.search(r"<code>clip\.frames</code><span>8 <small>16</small>", shared)
    assert "mask.ratio" not in shared, "0.75 is the default"
    alone = report(runs[0])
    assert "python -m avmae.train model.name=one" in alone.text
    assert re.search(r"<code>model\.name</code><span>one <small>avmae</small>", alone.after("Settings"))


def test_names_from_outside_are_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a&b", [f"name='{EVIL}'"], name=EVIL, note="$x$ ${logs}")
    classes = [EVIL, "$a_b$", "_under", "\" onload='x'"]
    content = results(classes, [[3, 1, 0, 0], [0, 4, 0, 0], [2, 0, 2, 0], [0, 0, 1, 3]], ckpt=EVIL)
    (folder / "results.json").write_text(json.dumps(content))
    (folder / "versions.json").write_text(json.dumps({EVIL: EVIL, "torch": "2.9"}))
    study = [row | {"system": EVIL, "degradation": EVIL} for row in study_rows()]
    (folder / "study.json").write_text(json.dumps({"rows": study}))
    write_reconstruction(folder / "r", label=EVIL)
    page = report(folder)
    assert "<script" not in page.html.lower()
    assert not [attrs for _, attrs in page.elements if "onload" in attrs]
    # In the bars, in both axes of the confusion matrix, in the study's legend and table.
    assert page.texts.count(EVIL) >= 6
    svg = page.html.split('class="matrix"')[1].split("</svg>")[0]
    for name in ("&lt;script&gt;alert(1)&lt;/script&gt;", "$a_b$", "_under"):
        assert svg.count(f">{name}</text>") == 2, name
    assert "versions" in page.texts
    assert "2.9" in page.texts


def test_classes_are_sorted_by_accuracy_and_say_what_they_are_taken_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", task={"name": "classify"})
    (folder / "results.json").write_text(json.dumps(results(["A", "B", "C"], [[1, 3, 0], [0, 4, 0], [1, 1, 2]])))
    page = report(folder)
    bars = re.findall(r'title="(\w), (\d) clips">.*?width:([\d.]+)%.*?<em>(.*?)</em>', page.html)
    assert bars == [("B", "4", "100.0", ""), ("C", "4", "50.0", "1 as B"), ("A", "4", "25.0", "3 as B")]
    assert "58.3%" in page.texts, "top-1 of all"
    assert "Confusion matrix" in page.text


def test_folds_are_added_up_and_averaged(tmp_path: Path) -> None:
    folds = [results(["A", "B"], [[4, 0], [k, 4 - k]], f"fold{k}.ckpt") for k in (0, 2, 4)]
    (tmp_path / "results.json").write_text(json.dumps({"top1": 0.75, "runs": folds}))
    page = report(tmp_path)
    assert "75.0% ± 25.0%" in page.texts
    assert {"fold0.ckpt", "fold2.ckpt", "fold4.ckpt"} <= set(page.texts)
    assert re.findall(r'title="(\w), 12 clips">.*?width:([\d.]+)%', page.html) == [("A", "100.0"), ("B", "50.0")]


def test_half_written_metrics_show_what_is_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    file = folder / "metrics.csv"
    rows = file.read_text().splitlines()
    file.write_text("\n".join([*rows, "3,39,nan,,,", "garbage", "3,49,1.5,,0.1234"]))
    found = read_run(folder)
    assert found.curves["train/loss"] == [(9, 2.5), (19, 1.5), (29, 0.5)]
    notes = "\n".join(found.notes)
    for part in ("train/loss is not finite at step 39", "1 line of metrics.csv", "has not ended", "at step 29"):
        assert part in notes
    assert "has not ended" in report(folder).text


@pytest.mark.parametrize("content", [None, "", "epoch,step,train/loss\n", "epoch,step,tra", "\x00\xff\n"])
def test_a_run_without_metrics_still_shows_what_was_run(content: str | None, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", ["seed=7"])
    (folder / "summary.json").unlink()
    (folder / "metrics.csv").unlink()
    if content is not None:
        (folder / "metrics.csv").write_text(content, encoding="latin1")
    page = report(folder)
    assert "no curves" in page.text
    assert "python -m avmae.train seed=7" in page.text
    assert "<svg" not in page.html


def test_figures_that_are_not_finite_are_named_and_leave_a_sweep_its_plots(sweep: Path) -> None:
    broken = sweep / "7/summary.json"
    broken.write_text(json.dumps(json.loads(broken.read_text()) | {"val/loss": math.nan, "val/knn_top1": math.inf}))
    page = report(sweep)
    assert page.after("Results against mask.ratio").count("<figcaption>") == 2
    assert "val/loss of summary.json is not finite" in page.text


def test_broken_files_become_notes(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "results.json").write_text('{"top1": 0.')
    (folder / ".hydra/config.yaml").write_text("a: [")
    (folder / "summary.json").write_text("[]")
    text = report(folder).text
    for name in ("results.json cannot be read", ".hydra/config.yaml cannot be read", "summary.json holds no mapping"):
        assert name in text
    odd = write_run(tmp_path / "odd")
    (odd / "results.json").write_text(json.dumps(results(["A"], [[1]]) | {"confusion": [[1, 2], [3]]}))
    assert "results.json is not what avmae.evaluate writes" in report(odd).text


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


def test_reconstructions_are_embedded_up_to_a_size_and_a_number(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_reconstruction(folder / "a")
    write_reconstruction(folder / "b", size=3_000_000)
    write_reconstruction(tmp_path / "elsewhere/c")
    page = report(folder, reconstructions=str(tmp_path / "elsewhere"), embed_mb=2)
    videos = [attrs["src"] for tag, attrs in page.elements if tag == "video"]
    assert [base64.b64decode(str(src).removeprefix("data:video/mp4;base64,")) for src in videos] == [b"video" * 200] * 2
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 3
    assert re.search(r"b/reconstruction.mp4 has 3.0 MB and was left out; embed_mb=4", page.text)
    assert {"21.50", "mask: ratio 0.9", "clip.avi"} <= set(page.texts)
    assert "1 more are not shown; clips=2" in report(folder, clips=1).text


def test_of_a_pretrainings_reconstructions_the_last_epochs_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for epoch in ("0000", "9999", "10000"):
        write_reconstruction(folder / f"reconstructions/epoch_{epoch}/clip")
    write_reconstruction(folder / "reconstructions/asked_for")
    page = report(folder)
    names = re.findall(r'class="reconstruction">\s*<h4>(.*?) <small>', page.html)
    assert sorted(names) == ["clip.avi", "clip.avi, epoch 10000"]


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


def test_a_study_shows_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"rows": [*study_rows()]}))
    page = report(tmp_path)
    part = page.after("Study: top1, split all")
    assert re.findall(r"<figcaption>(.*?)</", part) == ["blur", "noise"]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in part.split("<tbody>")[1].split("<tr>")[1:]]
    assert rows[0] == ["clean", "61.0% ± 1.4%", "71.0% ± 1.4%"]
    assert rows[2] == ["blur 2", "41.0% ± 1.4%", "51.0% ± 1.4%"]
    assert len(rows) == 4
    assert ">50.0%<" in page.after("Study: top1, split silent")


def test_a_studys_figure_has_a_panel_a_degradation_and_a_line_a_system(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"rows": [*study_rows()]}))
    rows = [row for row in read_study(tmp_path / "study.json") if row["split"] == "all"]
    figure = study_figure(rows, "top1")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["blur", "noise"]
    assert len({axes.get_ylim() for axes in panels}) == 1, "one scale"
    (container, _) = panels[0].containers
    line = container.lines[0]
    assert list(line.get_xdata()) == [0, 1, 2]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["clean", "1", "2"]
    assert list(line.get_ydata()) == pytest.approx([0.61, 0.51, 0.41])
    # Rows of several conditions are never averaged into one line.
    assert len({point.line for point in study_points(read_study(tmp_path / "study.json"), "top1")["blur"]}) == 3
    write_png(figure, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no study"),
        ('{"rows": []}', "holds no rows"),
        ('{"rows": [{"system": "a"}]}', "row 0 has no degradation"),
        ('{"rows": [3]}', "row 0 has no system"),
    ],
)
def test_a_wrong_study_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=message):
        report(tmp_path)


def test_what_cannot_be_shown_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folder, message in (("empty", "holds no run"), ("file", "is not a folder"), ("none", "is not a folder")):
        with pytest.raises(InputError, match=message):
            report(tmp_path / folder)
    good = write_run(tmp_path / "run")
    for wrong, message in ({"reconstructions": str(tmp_path / "empty")}, "reconstructions="), ({"clips": -1}, "clips"):
        with pytest.raises(InputError, match=message):
            report(good, **wrong)


def test_colours_and_shares() -> None:
    assert len(set(colours(7))) == 7
    assert len(set(colours(30))) == 30
    assert all(map(is_share, ("val/top1", "val/knn_top1", "results/silent/top5", "video_to_audio/r10", "top1")))
    assert not any(map(is_share, ("train/loss", "train/lr", "video/psnr_hidden", "clips", "hidden_mse")))


def test_long_runs_are_averaged_to_what_can_be_seen(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_metrics(folder, [{"epoch": 0, "step": step, "train/loss": step % 2} for step in range(20_000)])
    page = report(folder)
    assert "means over up to 50 logged values" in page.text
    assert len(page.html) < 60_000


def test_a_real_sweep_and_its_reconstruction(miniature: Path, tmp_path: Path) -> None:
    train(
        "-m",
        "mask.ratio=0.5,0.9",
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
        cwd=tmp_path,
        miniature=miniature,
    )
    (folder,) = (tmp_path / "logs/pretrain_avmae").glob("*_sweep")
    clip = next((miniature / "UCF-101").glob("*/*.avi"))
    ckpt = f"ckpt={folder}/0/checkpoints/last.ckpt"
    run("reconstruct", ckpt, f"input={clip}", f"output={folder}/0/reconstruction", cwd=tmp_path)
    printed = run("report", f"input={folder}", "output=out/page.html", cwd=tmp_path)
    assert "wrote out/page.html: 2 runs" in printed
    page = Page((tmp_path / "out/page.html").read_text())
    assert {"mask.ratio=0.5", "mask.ratio=0.9", "Video loss", "Audio loss", "size.dim"} <= set(page.texts)
    assert page.texts[1] == "pretrain_avmae", "the name's interpolations are resolved"
    assert "Results against mask.ratio" in page.text
    assert "has not ended" not in page.text
    assert importlib.metadata.version("torch") in page.texts, "what the run recorded of its environment"
    assert "holds no" not in page.text
    (video,) = [attrs["src"] for tag, attrs in page.elements if tag == "video"]
    expected = (folder / "0/reconstruction/reconstruction.mp4").read_bytes()
    assert base64.b64decode(str(video).partition(",")[2]) == expected

    message = error(run("report", f"input={miniature}", "output=page.html", cwd=tmp_path, ok=False))
    assert "holds no run" in message
    assert not (tmp_path / "page.html").exists()
