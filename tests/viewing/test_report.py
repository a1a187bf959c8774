"""The report of sweeps: its plots, settings and safety."""

import base64
import importlib.metadata
import json
import math
import re
from pathlib import Path

import pytest
from commands import error, run, train
from pages import Page, report, results, study_rows, write_metrics, write_reconstruction, write_run

from avmae.evaluation.metrics import is_share
from avmae.viewing.plots import colours

EVIL = "<script>alert(1)</script>"


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


def test_figures_that_are_not_finite_are_named_and_leave_a_sweep_its_plots(sweep: Path) -> None:
    broken = sweep / "7/summary.json"
    broken.write_text(json.dumps(json.loads(broken.read_text()) | {"val/loss": math.nan, "val/knn_top1": math.inf}))
    page = report(sweep)
    assert page.after("Results against mask.ratio").count("<figcaption>") == 2
    assert "val/loss of summary.json is not finite" in page.text


def test_colours_and_shares() -> None:
    assert len(set(colours(7))) == 7
    assert len(set(colours(30))) == 30
    assert all(map(is_share, ("val/top1", "val/knn_top1", "results/silent/top5", "video_to_audio/r10", "top1")))
    assert not any(map(is_share, ("train/loss", "train/lr", "video/psnr_hidden", "clips", "hidden_mse")))


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
