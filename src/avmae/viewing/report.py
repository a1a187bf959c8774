"""One HTML page that shows what runs did: what it holds, from the folders of runs, and its rendering."""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from avmae.errors import InputError
from avmae.runs.history import Run, arrange, find_runs, flat, read_reconstruction, read_run, read_study, varied

Table = dict[str, Any]
"""`header`, texts, and `rows` of cells: a text each, and where it has them `href`, `best` and `colour`."""

TITLES = {
    "loss": "Loss",
    "loss_video": "Loss on pictures",
    "loss_audio": "Loss on sound",
    "loss_contrast": "Contrastive loss",
    "knn_top1": "k-NN accuracy",
    "top1": "Top-1 accuracy",
    "sound/top1": "Top-1 accuracy, clips with sound",
    "silent/top1": "Top-1 accuracy, silent clips",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "data_wait": "Share of time spent waiting for data",
    "clips_per_second": "Clips per second",
}
SHOWN = ("loss", "loss_video", "loss_audio", "loss_contrast", "top1", "knn_top1", "lr")
"""Curves shown at once, in this order; others are folded away."""
OVERVIEW = (
    *("train/loss", "val/loss", "val/loss_video", "val/loss_audio", "val/knn_top1", "val/top1", "test/top1"),
    *("test/top5", "results/top1", "results/top5", "results/sound/top1", "results/silent/top1"),
    *("results/video_to_audio/r1", "results/audio_to_video/r1"),
)
"""Metrics of the table over runs."""
PARTS = {"train": "training", "val": "validation", "test": "test", "results": "avmae.evaluate"}
TASKS = {"pretrain": "Pretraining", "classify": "Classification"}


def build(config: Mapping[str, Any], standard: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows.

    Args:
        config: of `conf/report.yaml`.
        standard: what `python -m avmae.train` does without any argument, by dotted key.
    """
    import avmae
    from avmae.viewing.plots import colours

    inputs, found, studies, pictures = gather(config)
    arranged, sweeps = arrange([read_run(path) for path in {path.resolve(): path for path in found}.values()])
    owned: dict[Path | None, list[Path]] = {}
    for path in dict.fromkeys(path.resolve() for path in pictures):
        owners = [run.folder for run in arranged if run.folder.resolve() in (path, *path.parents)]
        owned.setdefault(max(owners, key=lambda owner: len(owner.parts), default=None), []).append(path)
    sections = list[dict[str, Any]]()
    for run in arranged:
        section = {
            "run": run,
            "anchor": f"run-{len(sections) + 1}",
            "task": TASKS.get(run.task, run.task),
            "metrics": {n: metric(n, value) for n, value in sorted(run.final.items()) if not n.startswith("results/")},
            "config": "\n".join(f"{key}: {_value(value)}" for key, value in run.config.items()),
            "records": {name: {k: _value(v) for k, v in flat(record).items()} for name, record in run.records.items()},
            "evaluation": evaluation(run),
            "reconstructions": reconstructions(owned.get(run.folder, []), config),
        }
        sections.append(section)
    tasks = [[s for s in sections if s["task"] == task] for task in dict.fromkeys(s["task"] for s in sections)]
    for alike in tasks:
        jobs = [section["run"] for section in alike]
        ordered = jobs in sweeps and isinstance(jobs[0].swept_value(_axis(jobs)), float)
        for section, colour in zip(alike, colours(len(alike), ordered), strict=True):
            section["colour"] = colour
    names = list(dict.fromkeys(run.name or run.label for run in arranged))
    return {
        "title": ", ".join(names or [path.resolve().name for path in inputs]),
        "inputs": [str(path) for path in inputs],
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "version": avmae.__version__,
        "counted": f"{len(sections)} run{'s' * (len(sections) > 1)}" if sections else "",
        "overview": [{"title": alike[0]["task"], "table": overview(alike)} for alike in tasks]
        if len(sections) > 1
        else [],
        "sweeps": [sweep_section([s for s in sections if s["run"] in jobs]) for jobs in sweeps],
        "curves": [curves_section([s for s in alike if s["run"].curves]) for alike in tasks],
        "studies": [section for file in studies for section in study_sections(read_study(file))],
        "settings": settings(sections, standard),
        "runs": sections,
        "reconstructions": reconstructions(owned.get(None, []), config),
    }


def render(page: Mapping[str, Any]) -> str:
    """The page as HTML; every text in it is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(page)


def gather(config: Mapping[str, Any]) -> tuple[list[Path], list[Path], list[Path], list[Path]]:
    """The inputs, folders of runs, files of studies, and folders of reconstructions.

    Raises:
        InputError: a folder does not exist or holds nothing that could be shown.
    """
    if not isinstance(config["clips"], int) or config["clips"] < 0 or not isinstance(config["embed_mb"], int | float):
        raise InputError("clips must be a whole number from 0, and embed_mb a number")
    given = config["input"] if isinstance(config["input"], list) else [config["input"]]
    inputs = [Path(str(path)).expanduser() for path in given]
    found, studies, pictures = list[Path](), list[Path](), list[Path]()
    for folder in inputs:
        if not folder.is_dir():
            raise InputError(f"input={folder} is not a folder; give a run's, such as logs/NAME/TIME, or a sweep's")
        runs, shown, study = find_runs(folder), find_reconstructions(folder), folder / "study.json"
        if folder not in runs and (folder / "results.json").is_file():
            runs.append(folder)
        if not (runs or shown or study.is_file()):
            raise InputError(
                f"input={folder} holds no run (metrics.csv, summary.json or .hydra/config.yaml), no results.json, "
                "no study.json and no reconstruction; give logs/NAME/TIME, or a sweep's folder"
            )
        found, pictures = found + runs, pictures + shown
        studies += [study] if study.is_file() else []
    if config["reconstructions"] is not None:
        folder = Path(str(config["reconstructions"])).expanduser()
        shown = find_reconstructions(folder)
        if not shown:
            raise InputError(f"reconstructions={folder} holds no reconstruction.png or reconstruction.mp4")
        pictures += shown
    return inputs, found, studies, pictures


def find_reconstructions(folder: Path) -> list[Path]:
    """Folders that `avmae.reconstruct` wrote, and those of the last epoch that a pretraining wrote."""
    files = (file for suffix in ("png", "mp4") for file in folder.resolve().rglob(f"reconstruction.{suffix}"))
    epochs = {file.parent: epoch_of(file.parent) for file in files}
    last: dict[Path, int] = {}
    for path, epoch in epochs.items():
        last[path.parent.parent] = max(last.get(path.parent.parent, -1), epoch)
    return sorted(path for path, epoch in epochs.items() if epoch in (-1, last[path.parent.parent]))


def epoch_of(folder: Path) -> int:
    """The epoch after which a pretraining wrote a reconstruction; -1 of what `avmae.reconstruct` wrote."""
    found = re.search(r"/reconstructions/epoch_(\d+)/[^/]+$", folder.as_posix())
    return int(found[1]) if found else -1


def overview(sections: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run of one task; the best accuracies are marked.

    Losses are not: under another mask or with other targets they measure another task.
    """
    from avmae.viewing.plots import is_share

    runs = [section["run"] for section in sections]
    names = [name for name in OVERVIEW if any(name in run.final for run in runs)]
    best = {}
    for name in names:
        values = {run.final[name] for run in runs if name in run.final}
        best[name] = max(values) if len(values) > 1 and is_share(name) else None
    rows = []
    for section, run in zip(sections, runs, strict=True):
        cells = [cell(run.label, href=f"#{section['anchor']}", colour=section["colour"])]
        for name in names:
            value = run.final.get(name)
            cells.append(
                cell("" if value is None else metric(name, value), best=value is not None and value == best[name])
            )
        rows.append(cells)
    return {"header": ["run", *names], "rows": rows}


def settings(sections: Sequence[Mapping[str, Any]], standard: Mapping[str, Any]) -> dict[str, Any]:
    """In what the runs differ, a table, and what they share that is not a default: (key, value, default) texts."""
    known = [section for section in sections if section["run"].config]
    configs = [section["run"].config for section in known]
    keys = varied(configs)
    shared = configs[0] if configs else {}
    changed = [key for key in varied([shared, standard]) if key in shared and key not in keys]
    rows = [
        [cell(s["run"].label, href=f"#{s['anchor']}"), *(cell(_text(s["run"].config, k)) for k in keys)] for s in known
    ]
    return {
        "differing": _turned({"header": ["run", *keys], "rows": rows}) if keys else None,
        "changed": [(key, _text(shared, key), _text(standard, key)) for key in changed],
    }


def sweep_section(sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Final metrics against the swept key; further keys make lines, seeds make deviations."""
    from avmae.viewing.plots import Point, colours, dependence_figure, svg

    jobs = [s["run"] for s in sections]
    axis, keys = _axis(jobs), jobs[0].swept
    kinds = [key for key in keys if key not in (axis, "seed")]
    names = [name for name in OVERVIEW if sum(name in job.final for job in jobs) > 1]
    line_of = [", ".join(f"{key}={job.overrides.get(key, 'default')}" for key in kinds) for job in jobs]
    lines = list(dict.fromkeys(line_of))
    panels = []
    for name in names:
        if name == "train/loss" and "val/loss" in names:
            continue
        points = list[Point]()
        for section, job, line in zip(sections, jobs, line_of, strict=True):
            if name in job.final:
                place, link = job.swept_value(axis), f"#{section['anchor']}"
                points.append(Point(line, place, job.final[name], link, "" if kinds else section["colour"]))
        part, _, rest = name.partition("/")
        title = f"{TITLES.get(rest, rest)}, {PARTS.get(part, part)}"
        panels.append({"title": title, "svg": svg(dependence_figure(points, axis, name, lines=lines))})
    legend = [{"text": line, "colour": colour} for line, colour in zip(lines, colours(len(lines)), strict=True)]
    return {
        "axis": axis,
        "panels": panels,
        "legend": legend if kinds else [],
        "seeds": "seed" in keys and axis != "seed",
        "masks": axis.startswith("mask."),
    }


def curves_section(sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Curves of the runs of one task, each quantity in one plot."""
    from avmae.viewing.plots import POINTS, Curve, curves_figure, svg

    logged = dict.fromkeys(name for s in sections for name in s["run"].curves)
    names = sorted({name.partition("/")[2] for name in logged if name.startswith(("train/", "val/"))})
    panels: dict[bool, list[dict[str, str]]] = {True: [], False: []}
    for name in sorted(names, key=lambda n: (SHOWN.index(n) if n in SHOWN else len(SHOWN), n)):
        curves = [
            Curve(s["colour"], s["run"].curves.get(f"train/{name}", []), s["run"].curves.get(f"val/{name}", []))
            for s in sections
        ]
        panels[name in SHOWN].append({"title": TITLES.get(name, name), "svg": svg(curves_figure(name, curves))})
    longest = max((len(points) for s in sections for points in s["run"].curves.values()), default=0)
    return {
        "title": sections[0]["task"] if sections else "",
        "legend": [{"text": s["run"].label, "colour": s["colour"], "href": f"#{s['anchor']}"} for s in sections],
        "shown": panels[True],
        "folded": panels[False],
        "averaged": -(-longest // POINTS),
    }


def evaluation(run: Run) -> dict[str, Any] | None:
    """What `avmae.evaluate` found: figures, folds, classes and their confusion, added up over folds."""
    from avmae.viewing.plots import confusion_figure, svg

    if not run.results:
        return None
    parts = run.results.get("runs") or [run.results]
    try:
        found: dict[str, Any] = {"classes": [], "confusion": None}
        found["figures"] = figures("checkpoint", {str(part["ckpt"]): part for part in parts})
        if "confusion" not in parts[0]:
            return found
        classes = list(map(str, parts[0]["classes"]))
        confusion = [
            [sum(cells) for cells in zip(*lines, strict=True)]
            for lines in zip(*(p["confusion"] for p in parts), strict=True)
        ]
        for label, (name, counts) in enumerate(zip(classes, confusion, strict=True)):
            clips = sum(counts)
            count, other = max(((c, n) for n, c in enumerate(counts) if n != label), default=(0, 0))
            if clips:
                taken = f"{count} as {classes[other]}" if count else ""
                found["classes"].append({"name": name, "share": counts[label] / clips, "clips": clips, "taken": taken})
        found["classes"].sort(key=lambda row: -row["share"])
        return found | {"confusion": svg(confusion_figure(confusion, classes))}
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        run.notes.append(f"results.json is not what avmae.evaluate writes ({type(error).__name__}: {error})")
        return None


def reconstructions(folders: Sequence[Path], config: Mapping[str, Any]) -> dict[str, Any]:
    """Videos, contact sheets and figures of the first few folders, and how many others there are."""
    shown = []
    for folder in folders[: config["clips"]]:
        content, epoch = read_reconstruction(folder), epoch_of(folder)
        shown.append(
            {
                "name": Path(content["input"]).name + (f", epoch {epoch}" if epoch >= 0 else ""),
                "mask": ", ".join(f"{key} {_value(value)}" for key, value in content["mask"].items()),
                "video": embedded(folder / "reconstruction.mp4", "video/mp4", config["embed_mb"]),
                "picture": embedded(folder / "reconstruction.png", "image/png", config["embed_mb"]),
                "figures": figures("system", content["systems"]),
            }
        )
    return {"shown": shown, "left": max(0, len(folders) - len(shown))}


def figures(first: str, content: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """A table of numbers by row and name, on its side, with the mean of several checkpoints."""
    names = list(dict.fromkeys(name for found in content.values() for name in found))
    numbers = {n: [v for found in content.values() if isinstance(v := found.get(n), int | float)] for n in names}
    names = [n for n in names if numbers[n]]
    if not names:
        return None
    from avmae.viewing.plots import mean_deviation

    rows = [
        [cell(label), *(cell(metric(n, v) if isinstance(v := found.get(n), int | float) else "–") for n in names)]
        for label, found in content.items()
    ]
    if first == "checkpoint" and len(rows) > 1:
        rows.append([cell("mean ± deviation"), *(cell(_spread(n, *mean_deviation(numbers[n]))) for n in names)])
    return _turned({"header": [first, *names], "rows": rows})


def embedded(file: Path, kind: str, limit: float) -> dict[str, str]:
    """A file as a `data:` address, or a note where it is missing or larger than a limit in MB."""
    if not file.is_file():
        return {"data": "", "note": ""}
    size = file.stat().st_size / 1e6
    if size > limit:
        return {"data": "", "note": f"{file} has {size:.1f} MB and was left out; embed_mb={size + 1:.0f} takes it in"}
    return {"data": f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}", "note": ""}


def study_sections(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Figures and a table of each metric under each condition of a study."""
    from avmae.viewing.plots import CLEAN, colours, mean_deviation, study_conditions, study_figure, study_points, svg

    keys, parts = study_conditions(rows), dict[tuple[Any, ...], list[Mapping[str, Any]]]()
    for row in rows:
        parts.setdefault((row["metric"], *(row.get(key) for key in keys)), []).append(row)
    sections = []
    for (name, *values), chosen in parts.items():
        lines = list(dict.fromkeys(str(row["system"]) for row in chosen))
        groups: dict[tuple[str, str], dict[str, list[float]]] = {}
        for row in chosen:
            clean = row["degradation"] in CLEAN
            place = ("clean", "") if clean else (str(row["degradation"]), _value(row["severity"]))
            groups.setdefault(place, {}).setdefault(str(row["system"]), []).append(row["value"])
        cells = [
            [*map(cell, place), *(cell(_spread(name, *mean_deviation(found[x])) if x in found else "–") for x in lines)]
            for place, found in groups.items()
        ]
        section = {
            "title": ", ".join([name, *(f"{k} {v}" for k, v in zip(keys, values, strict=True) if v is not None)]),
            "panels": [
                {"title": degradation, "svg": svg(study_figure(chosen, name, [degradation], labels=False))}
                for degradation in study_points(chosen, name)
            ],
            "legend": [{"text": line, "colour": c} for line, c in zip(lines, colours(len(lines)), strict=True)],
            "table": {"header": ["degradation", "severity", *lines], "rows": cells},
        }
        sections.append(section)
    return sections


def metric(name: str, value: float) -> str:
    """A metric's value as text: shares of 1 in percent, counts whole, others to four digits."""
    from avmae.viewing.plots import is_share

    return f"{value:.1%}" if is_share(name) else str(value) if isinstance(value, int) else f"{value:#.4g}"


def cell(text: str, **marks: Any) -> dict[str, Any]:
    """A cell of a table."""
    return {"text": text, "href": None, "best": False, "colour": None} | marks


def _turned(table: Table) -> Table:
    """The table on its side where it has more columns than rows, so that it stays readable on narrow screens."""
    if len(table["header"]) <= len(table["rows"]) + 1:
        return table
    first, *others = table["header"]
    rows = [[cell(name), *(row[n] for row in table["rows"])] for n, name in enumerate(others, 1)]
    return {"header": [first, *(row[0]["text"] for row in table["rows"])], "rows": rows}


def _spread(name: str, mean: float, deviation: float | None) -> str:
    from avmae.viewing.plots import is_share

    if deviation is None:
        return metric(name, mean)
    return f"{metric(name, mean)} ± {metric(name, deviation) if is_share(name) else format(deviation, '.2g')}"


def _axis(jobs: Sequence[Run]) -> str:
    keys = jobs[0].swept
    numbers = [k for k in keys if k != "seed" and all(isinstance(job.swept_value(k), float) for job in jobs)]
    return [*numbers, *(k for k in keys if k != "seed"), *keys][0]


def _text(config: Mapping[str, Any], key: str) -> str:
    return _value(config[key]) if key in config else "–"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
