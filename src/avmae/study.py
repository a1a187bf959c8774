"""`python -m avmae.study`: does sound help, and most where the video is poor? Every training and test of the answer."""

import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from avmae.cli.command import command
from avmae.cli.config import check_counts
from avmae.cli.table import print_table
from avmae.clip import ClipSpec
from avmae.data.build import build_data
from avmae.evaluation.data import evaluation_data
from avmae.evaluation.study import Study, StudySpec, study_tables
from avmae.runs.files import write_json
from avmae.runs.settings import spec


def study(plan: Study, jobs: int | None = None, progress: bool = False) -> dict[str, Any]:
    """Train and test what has not been yet, `jobs` systems at once; write and return what study.json holds."""
    from avmae.evaluation.controls import controls
    from avmae.models.weights import read_checkpoint
    from avmae.viewing.plots import study_figure, write_png

    plan.begin()
    plan.run(jobs, progress)
    rows, controlled = plan.rows(), plan.output / "controls.json"
    if not controlled.is_file():
        trained = read_checkpoint(next(plan.output.glob("*/seed*/finetune_1/checkpoints/last.ckpt"))).config
        data = evaluation_data(trained, {"segments": 1, "crops": 1}, ["video", "audio"])
        write_json(controlled, controls(data, progress))
    content = {"study": asdict(plan.spec), "controls": json.loads(controlled.read_text(encoding="utf-8")), "rows": rows}
    write_json(plan.output / "study.json", content)
    for metric, start in (("top1", "pretrained"), ("hidden_mse", "pretraining")):
        chosen = [row for row in rows if (row["start"], row["labels"], row["subset"]) == (start, 1.0, "sound")]
        write_png(study_figure(chosen, metric), plan.output / f"{metric}.png")
    return content


@command("study")
def main(config: dict[str, Any]) -> None:
    """Train, test, tabulate; see `python -m avmae.study --help`."""
    check_counts(config, "jobs")
    began, settings, job = time.monotonic(), spec(StudySpec, "study", config["study"]), HydraConfig.get()
    output = Path(config["output"] or f"logs/study_{settings.name}{'_quick' if settings.quick else ''}")
    data = [f"data={job.runtime.choices['data']}", *(o for o in job.overrides.task if o.startswith("data."))]
    plan = Study(output, settings, data, config["accelerator"])
    if plan.units():
        # Data that are written at first use, before two trainings find them missing.
        build_data(config["data"], ClipSpec()).require_test()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    content = study(plan, config["jobs"], progress=True)
    for title, header, rows in study_tables(plan.spec.systems, content["rows"], content["controls"]):
        print(f"\n{title}")
        print_table(header, rows)
    print(f"wrote {output}: study.json, top1.png, hidden_mse.png in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
