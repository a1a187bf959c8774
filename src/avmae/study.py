"""`python -m avmae.study`: does audio help, and most where the video is poor? Every training and test of the answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.cli.config import check_counts, data_overrides, require_test_clips
from avmae.cli.table import print_tables
from avmae.evaluation.controls import controls
from avmae.evaluation.data import evaluation_data
from avmae.evaluation.study import Study, StudySpec, study_tables
from avmae.models.weights import read_checkpoint
from avmae.runs.files import write_json
from avmae.runs.settings import spec
from avmae.viewing.plots import study_figure, write_png


def study(output: str | Path, settings: Mapping[str, Any], data: Sequence[str], **how: Any) -> dict[str, Any]:
    """Train and test what has not been yet; write study.json and its plots, and return what it holds.

    Args:
        output: folder of the study; one that was stopped is resumed there.
        settings: of `StudySpec`.
        data: overrides of every training, as ``["data=ucf101", "data.root=DIR"]``.
        how: `accelerator` of trainings and tests, and `jobs` and `progress` of `Study.run`.
    """
    plan = Study(Path(output), spec(StudySpec, "study", settings), data, how.pop("accelerator", "auto"))
    if plan.units():
        require_test_clips(data)
    plan.run(**how)
    rows, controlled = plan.rows(), plan.output / "controls.json"
    if not controlled.is_file():
        trained = read_checkpoint(next(plan.output.glob("*/seed*/finetune_1*/checkpoints/last.ckpt"))).config
        tested = evaluation_data(trained, {"segments": 1, "crops": 1}, ["video", "audio"])
        write_json(controlled, controls(tested, how.get("progress", False)))
    known = json.loads(controlled.read_text(encoding="utf-8"))
    content = {"study": asdict(plan.spec), "controls": known, "paired": plan.paired(), "rows": rows}
    write_json(plan.output / "study.json", content)
    for metric, start in {"top1": "pretrained", "hidden_mse": "pretraining"}.items():
        chosen = [row for row in rows if (row["start"], row["labels"], row["subset"]) == (start, 1.0, "sound")]
        write_png(study_figure(chosen, metric), plan.output / f"{metric}.png")
    return content


@command("study")
def main(config: dict[str, Any]) -> None:
    """Train, test, tabulate."""
    check_counts(config, "jobs")
    output = config["output"] or f"logs/study_{config['study']['name']}{'_quick' * bool(config['study']['quick'])}"
    how = {"accelerator": config["accelerator"], "jobs": config["jobs"], "progress": True}
    content = study(output, config["study"], data_overrides(), **how)
    print_tables(study_tables(content["study"]["systems"], content["rows"], content["controls"], content["paired"]))
    print(f"wrote {output}: study.json, top1.png, hidden_mse.png")


if __name__ == "__main__":
    main()
