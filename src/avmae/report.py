"""`python -m avmae.report input=DIR`: one HTML file that shows what runs did."""

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from avmae.command import command
from avmae.errors import InputError
from avmae.runs import Run, arrange, find_runs, flat, read_run, read_study, varied

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
)
"""Metrics of the table over runs."""
TASKS = {"pretrain": "Pretraining", "classify": "Classification"}


@command("report")
def main(config: dict[str, Any]) -> None:
    """Gather what lies in the folders and write the page; see `python -m avmae.report --help`."""
    import jinja2

    output = Path(config["output"]).expanduser()
    if output.is_dir():
        raise InputError(f"output={output} is a folder; give a file, such as output={output}/report.html")
    page = build(config)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(environment.get_template("report.html").render(page), encoding="utf-8")
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}; choose another") from error
    for section in page["runs"]:
        print(*(f"{section['run'].label}: {note}" for note in section["run"].notes), sep="\n", end="")
    print(f"wrote {output}: {page['counted']}, {output.stat().st_size / 1e6:.1f} MB")


def build(config: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows.

    Args:
        config: of `conf/report.yaml`.

    Raises:
        InputError: a folder does not exist or holds nothing that could be shown.
    """
    import avmae
    from avmae.plots import colours

    inputs = [Path(path).expanduser() for path in _listed(config["input"])]
    found, studies, pictures = list[Path](), [], list[Path]()
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
        studies += study_sections(read_study(study)) if study.is_file() else []
        found, pictures = found + runs, pictures + shown
    if config["reconstructions"] is not None:
        folder = Path(config["reconstructions"]).expanduser()
        given = find_reconstructions(folder)
        if not given:
            raise InputError(f"reconstructions={folder} holds no reconstruction.png or reconstruction.mp4")
        pictures += given
    arranged, sweeps = arrange([read_run(path) for path in dict.fromkeys(path.resolve() for path in found)])
    owned: dict[Path | None, list[Path]] = {}
    for path in dict.fromkeys(path.resolve() for path in pictures):
        owners = [run.folder for run in arranged if run.folder in (path, *path.parents)]
        owned.setdefault(max(owners, key=lambda owner: len(owner.parts), default=None), []).append(path)
    ordered = bool(arranged) and sweeps == [arranged] and isinstance(arranged[0].swept_value(_axis(arranged)), float)
    standard, sections = defaults(), []
    for number, (run, colour) in enumerate(zip(arranged, colours(len(arranged), ordered), strict=True)):
        shown_here = reconstructions(owned.get(run.folder, []), config)
        sections.append(
            {
                "run": run,
                "anchor": f"run-{number + 1}",
                "colour": colour,
                "task": TASKS.get(run.task, run.task),
                "settings": settings_table(run, standard),
                "config": "\n".join(f"{key}: {_value(value)}" for key, value in run.config.items()),
                "metrics": pairs(
                    {n: metric(n, v) for n, v in sorted(run.final.items()) if not n.startswith("results/")}
                ),
                "records": {name: pairs(flat(content)) for name, content in run.records.items()},
                "evaluation": evaluation(run),
                "reconstructions": shown_here,
            }
        )
    swept = {key for jobs in sweeps for key in jobs[0].swept}
    return {
        "title": sections[0]["run"].label if len(sections) == 1 else ", ".join(path.resolve().name for path in inputs),
        "inputs": [str(path) for path in inputs],
        "written": f"{datetime.now():%Y-%m-%d %H:%M}",
        "version": avmae.__version__,
        "counted": f"{len(sections)} run{'' if len(sections) == 1 else 's'}",
        "overview": overview(sections),
        "sweeps": [sweep_section([s for s in sections if s["run"] in jobs]) for jobs in sweeps],
        "differences": differences(sections, swept),
        "curves": [
            curves_section(task, [s for s in sections if s["task"] == task and s["run"].curves])
            for task in dict.fromkeys(s["task"] for s in sections if s["run"].curves)
        ],
        "studies": studies,
        "runs": sections,
        "reconstructions": reconstructions(owned.get(None, []), config),
    }


def find_reconstructions(folder: Path) -> list[Path]:
    """Folders that `avmae.reconstruct` wrote."""
    return sorted({file.parent for suffix in ("png", "mp4") for file in folder.rglob(f"reconstruction.{suffix}")})


def defaults() -> dict[str, Any]:
    """What `python -m avmae.train` does without any argument, by dotted key."""
    from hydra import compose
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(compose("train"))
    assert isinstance(content, dict)
    return flat({str(key): value for key, value in content.items()})


def overview(sections: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row for each run; of several the best figures are marked, those of one task against each other."""
    runs = [s["run"] for s in sections]
    names = [name for name in OVERVIEW if any(name in run.final for run in runs)]
    if not names:
        return None
    rows = []
    for section, run in zip(sections, runs, strict=True):
        cells = [cell(run.label, href=f"#{section['anchor']}", colour=section["colour"])]
        for name in names:
            rivals = [other.final[name] for other in runs if other.task == run.task and name in other.final]
            value = run.final.get(name)
            best = (min if "loss" in name else max)(rivals) if len(set(rivals)) > 1 else None
            cells.append(cell("" if value is None else metric(name, value), best=value is not None and value == best))
        rows.append(cells)
    return {"header": ["run", *names], "rows": rows}


def differences(sections: Sequence[Mapping[str, Any]], swept: set[str]) -> Table | None:
    """Settings that differ between runs, but for those whose values already name the jobs of a sweep."""
    known = [s for s in sections if s["run"].config]
    keys = [key for key in varied([s["run"].config for s in known]) if len(known) < len(sections) or key not in swept]
    if len(known) < 2 or not keys:
        return None
    rows = [
        [cell(s["run"].label, href=f"#{s['anchor']}"), *(cell(_value(s["run"].config.get(k, "–"))) for k in keys)]
        for s in known
    ]
    return _turned({"header": ["run", *keys], "rows": rows})


def settings_table(run: Run, standard: Mapping[str, Any]) -> Table | None:
    """Where a run's config differs from what training does by default."""
    keys = [key for key in varied([run.config, standard]) if key in run.config]
    if not run.config or not keys:
        return None
    rows = [[cell(key), cell(_value(run.config[key])), cell(_value(standard.get(key, "–")))] for key in keys]
    return {"header": ["setting", "this run", "default"], "rows": rows}


def sweep_section(sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Final metrics against the swept key; further keys make lines, seeds make deviations."""
    from avmae.plots import Point, colours, dependence_figure, svg

    jobs = [s["run"] for s in sections]
    axis, keys = _axis(jobs), jobs[0].swept
    kinds = [key for key in keys if key not in (axis, "seed")]
    names = [name for name in OVERVIEW if sum(name in job.final for job in jobs) > 1]
    panels, lines = [], dict[str, None]()
    for name in names:
        if name == "train/loss" and "val/loss" in names:
            continue
        points = list[Point]()
        for section, job in zip(sections, jobs, strict=True):
            if name in job.final:
                line = ", ".join(f"{key}={job.overrides.get(key, 'default')}" for key in kinds)
                points.append(Point(line, job.swept_value(axis), job.final[name], f"#{section['anchor']}"))
        lines |= dict.fromkeys(point.line for point in points)
        panels.append({"title": name, "svg": svg(dependence_figure(points, axis, name))})
    legend = [{"text": line, "colour": colour} for line, colour in zip(lines, colours(len(lines)), strict=True)]
    return {
        "axis": axis,
        "panels": panels,
        "legend": legend if kinds else [],
        "seeds": "seed" in keys and axis != "seed",
        "masks": axis.startswith("mask."),
    }


def curves_section(task: str, sections: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Curves of the runs of one task, each quantity in one plot."""
    from avmae.plots import POINTS, Curve, curves_figure, svg

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
        "title": task,
        "legend": [{"text": s["run"].label, "colour": s["colour"], "href": f"#{s['anchor']}"} for s in sections],
        "shown": panels[True],
        "folded": panels[False],
        "averaged": -(-longest // POINTS),
    }


def evaluation(run: Run) -> dict[str, Any] | None:
    """What `avmae.evaluate` found: figures, folds, classes and their confusion, added up over folds."""
    from avmae.plots import confusion_figure, mean_deviation, svg

    if not run.results:
        return None
    parts = run.results.get("runs") or [run.results]
    try:
        names = [name for name, value in parts[0].items() if isinstance(value, int | float)]
        rows = [[cell(str(part["ckpt"])), *(cell(metric(n, part[n])) for n in names)] for part in parts]
        if len(parts) > 1:
            columns = [mean_deviation([part[n] for part in parts]) for n in names]
            spread = [f"{metric(n, m)} ± {metric(n, d or 0)}" for n, (m, d) in zip(names, columns, strict=True)]
            rows.append([cell("mean ± deviation"), *map(cell, spread)])
        found: dict[str, Any] = {"figures": _turned({"header": ["checkpoint", *names], "rows": rows}), "classes": []}
        if "confusion" not in parts[0]:
            return found | {"confusion": None}
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
        content: Any = {}
        if (folder / "metrics.json").is_file():
            try:
                content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
            except ValueError:
                content = {}
        systems = content.get("systems") or {}
        names = list(dict.fromkeys(name for found in systems.values() for name in found))
        rows = [
            [cell(label), *(cell("–" if found.get(n) is None else metric(n, found[n])) for n in names)]
            for label, found in systems.items()
        ]
        shown.append(
            {
                "name": Path(str(content.get("input", folder))).name,
                "mask": ", ".join(f"{key} {_value(value)}" for key, value in (content.get("mask") or {}).items()),
                "video": embedded(folder / "reconstruction.mp4", "video/mp4", config["embed_mb"]),
                "picture": embedded(folder / "reconstruction.png", "image/png", config["embed_mb"]),
                "figures": _turned({"header": ["system", *names], "rows": rows}) if rows else None,
            }
        )
    return {"shown": shown, "left": max(0, len(folders) - len(shown))}


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
    from avmae.plots import colours, mean_deviation, study_conditions, study_figure, study_points, svg

    keys, sections = study_conditions(rows), []
    for name in dict.fromkeys(row["metric"] for row in rows):
        for values in dict.fromkeys(tuple(row.get(key) for key in keys) for row in rows if row["metric"] == name):
            chosen = [row for row in rows if row["metric"] == name and tuple(row.get(key) for key in keys) == values]
            points = study_points(chosen, name)
            lines = list(dict.fromkeys(point.line for panel in points.values() for point in panel))
            groups: dict[tuple[str, Any], dict[str, list[float]]] = {}
            for degradation, panel in points.items():
                for point in panel:
                    groups.setdefault((degradation, point.place), {}).setdefault(point.line, []).append(point.value)
            table = []
            for (degradation, severity), found in groups.items():
                texts = [mean_deviation(found[line]) if line in found else None for line in lines]
                shown = ["–" if t is None else _spread(name, *t) for t in texts]
                table.append([cell(degradation), cell(_value(severity)), *map(cell, shown)])
            sections.append(
                {
                    "title": ", ".join(
                        [name, *(f"{k} {v}" for k, v in zip(keys, values, strict=True) if v is not None)]
                    ),
                    "panels": [{"title": d, "svg": svg(study_figure(chosen, name, [d], False))} for d in points],
                    "legend": [{"text": line, "colour": c} for line, c in zip(lines, colours(len(lines)), strict=True)],
                    "table": {"header": ["degradation", "severity", *lines], "rows": table},
                }
            )
    return sections


def metric(name: str, value: float) -> str:
    """A metric's value as text: shares of 1 in percent."""
    from avmae.plots import is_share

    return f"{value:.1%}" if is_share(name) else f"{value:.4g}"


def cell(text: str, **marks: Any) -> dict[str, Any]:
    """A cell of a table."""
    return {"text": text, "href": None, "best": False, "colour": None} | marks


def pairs(content: Mapping[str, Any]) -> Table:
    """A table of names and values without a header."""
    return {"header": [], "rows": [[cell(name), cell(_value(value))] for name, value in content.items()]}


def _turned(table: Table) -> Table:
    """The table on its side where it has more columns than rows, so that it stays readable on narrow screens."""
    if len(table["header"]) <= len(table["rows"]) + 1:
        return table
    first, *others = table["header"]
    rows = [[cell(name), *(row[n] for row in table["rows"])] for n, name in enumerate(others, 1)]
    return {"header": [first, *(row[0]["text"] for row in table["rows"])], "rows": rows}


def _spread(name: str, mean: float, deviation: float | None) -> str:
    return metric(name, mean) + ("" if deviation is None else f" ± {metric(name, deviation)}")


def _axis(jobs: Sequence[Run]) -> str:
    keys = jobs[0].swept
    numbers = [k for k in keys if k != "seed" and all(isinstance(job.swept_value(k), float) for job in jobs)]
    return [*numbers, *(k for k in keys if k != "seed"), *keys][0]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    main()
