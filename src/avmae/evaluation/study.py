"""Does audio help, and most where the video is poor? Every training and test of the answer, and its tables."""

import json
import re
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from avmae.errors import InputError
from avmae.evaluation.degraded import Row, condition_name
from avmae.evaluation.metrics import sign_test, spread_text
from avmae.evaluation.results import Table
from avmae.runs.files import write_json
from avmae.runs.folder import newest_intact
from avmae.runs.side_by_side import Unit, places, run_side_by_side

HEARING = ("avmae_concat", "avmae")
PROBED = re.compile(r"(sound/|silent/)?((?:knn|linear)/\w+/top1)")
QUICK: dict[str, Any] = {
    "seeds": [0],
    "labels": [1.0],
    "probe": None,
    "tuning": {},
    "degradations": ["lowres:8", "blur:16", "drop:0.75", "noise:0", "silence", "shift:0.4", "scene", "swap"],
}
QUICK_PRETRAINING = ("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=4")


@dataclass(frozen=True)
class StudySpec:
    """What is trained and tested; conf/study/sound.yaml explains the settings.

    Raises:
        InputError: no fine-tuning is on all training clips.
    """

    name: str
    quick: bool
    systems: list[str]
    seeds: list[int]
    labels: list[float]
    pretrain: str
    finetune: str
    few_labels: list[str]
    overrides: list[str]
    hearing: dict[str, list[str]]
    degradations: str | list[str]
    probe: str | None
    tuning: dict[str, list[str]]

    def __post_init__(self) -> None:
        for name, value in QUICK.items() if self.quick else ():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "labels", [float(share) for share in self.labels])
        if 1.0 not in self.labels:
            raise InputError(f"study.labels={self.labels} must contain 1.0, a fine-tuning on all training clips")


@dataclass(frozen=True)
class Training:
    """One run of `python -m avmae.train`.

    Args:
        name: of its folder.
        start: what the weights start from: `pretraining` itself, `pretrained` or `scratch`; `random`, a network as it
            was drawn; `probe` and `random probe`, attentive probes of the frozen `pretraining` and of `random`.
        labels: share of the training clips.
        arguments: of the command, but for the data and the folder.
        options: more arguments, by name; the training is done with each, and the one best on validation clips counts.
    """

    name: str
    start: str
    labels: float
    arguments: tuple[str, ...]
    options: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"": ()})

    def folders(self, parent: Path) -> dict[Path, Sequence[str]]:
        """Of its runs, with the arguments that each adds."""
        return {parent / "_".join(filter(None, (self.name, option))): extra for option, extra in self.options.items()}


@dataclass(frozen=True)
class Study:
    """A study in its folder; one that was stopped is resumed there. `data` are arguments of every training."""

    output: Path
    spec: StudySpec
    data: Sequence[str]
    accelerator: str

    def _begin(self) -> None:
        """Make the folder, or resume what is in it; seeds and systems may be added to a study later.

        Raises:
            InputError: it cannot be made, or holds a study with other settings.
        """
        file = self.output / "settings.json"
        settings = {k: v for k, v in asdict(self.spec).items() if k not in ("seeds", "systems")}
        settings["data"] = list(self.data)
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else settings
        if differs := sorted(key for key in found.keys() | settings.keys() if found.get(key) != settings.get(key)):
            raise InputError(
                f"{self.output} holds a study with another {', '.join(differs)} ({found.get(differs[0])}, now "
                f"{settings.get(differs[0])}); give output=NEWDIR, or delete it"
            )
        write_json(file, settings)

    def units(self, progress: bool = False) -> dict[str, Unit]:
        """Trainings and tests that have not been done, by system and seed; see `run_side_by_side`."""
        # The most expensive systems first, so that the last one to end is a short one.
        every = [(system, seed) for seed in self.spec.seeds for system in reversed(self.spec.systems)]
        return {
            f"{system}, seed {seed}": self._unit(system, seed, progress)
            for system, seed in every
            if not self._rows_of(system, seed).is_file()
        }

    def run(self, jobs: int | None = None, progress: bool = False) -> None:
        """Do all units, some at once (see `places`).

        Raises:
            InputError: the folder holds a study with other settings; or a training or test failed, and which.
        """
        self._begin()
        units, began, ended = self.units(progress), time.monotonic(), set[str]()

        def note(name: str) -> None:
            ended.add(name)
            if progress:
                print(f"[{len(ended)}/{len(units)}] {name}: {time.monotonic() - began:.0f} s so far", flush=True)

        if units:
            run_side_by_side(units, places(jobs, self.accelerator), note)

    def rows(self) -> list[Row]:
        """What was found, when all units are done; accuracy first, for that is what is asked for."""
        files = [self._rows_of(system, seed) for seed in self.spec.seeds for system in self.spec.systems]
        rows = [row for file in files for row in json.loads(file.read_text(encoding="utf-8"))]
        return sorted(rows, key=lambda row: row["start"] == "pretraining")

    def paired(self) -> list[dict[str, Any]]:
        """Of each system and share of labels, test clips of all seeds that one start alone classifies rightly.

        Returns:
            `system`, `labels`, `pretrained` and `scratch`, how many clips only these classify rightly, and `p`, of the
            sign test that both are equally good (McNemar's exact test); as if each seed had clips of its own.
        """
        found = []
        for system, share in product(self.spec.systems, () if self.spec.quick else self.spec.labels):
            alone = {"pretrained": 0, "scratch": 0}
            for seed in self.spec.seeds:
                folder = self._rows_of(system, seed).parent
                files = [folder / f"{name}_{share:g}.json" for name in ("finetune", "scratch")]
                first, second = (right(json.loads(file.read_text(encoding="utf-8"))) for file in files)
                alone["pretrained"] += sum(a and not b for a, b in zip(first, second, strict=True))
                alone["scratch"] += sum(b and not a for a, b in zip(first, second, strict=True))
            found.append({"system": system, "labels": share, **alone, "p": sign_test(*alone.values())})
        return found

    def _rows_of(self, system: str, seed: int) -> Path:
        return self.output / system / f"seed{seed}" / "rows.json"

    def _unit(self, system: str, seed: int, progress: bool) -> Unit:
        """Train one system with one seed in all ways and test each; leaves rows.json in its folder."""
        file, found = self._rows_of(system, seed), list[Row]()
        for training in trainings(file.parent, system, seed, self.spec):
            tested, folders = file.parent / f"{training.name}.json", training.folders(file.parent)
            for run_dir, extra in folders.items():
                run_dir.mkdir(parents=True, exist_ok=True)
                if not (run_dir / "summary.json").is_file():
                    yield self._command("train", self._train(training, extra, run_dir), run_dir, progress)
            if not tested.is_file():
                best = max(folders, key=lambda run: summary(run).get("val/top1", 0.0))
                yield self._command("evaluate", self._test(training, best), best, progress)
            about = {"system": system, "seed": seed, "start": training.start, "labels": training.labels}
            results = json.loads(tested.read_text(encoding="utf-8"))
            found += [about | row for row in (*results.get("degraded", ()), *probe_rows(results))]
        write_json(file, found)

    def _command(self, name: str, arguments: Iterable[str], run_dir: Path, progress: bool) -> tuple[list[str], Path]:
        command = ["-m", f"avmae.{name}", *arguments]
        if progress:
            print(f"  {shlex.join(['python', *command])}", flush=True)
        return command, run_dir / "output.txt"

    def _train(self, training: Training, extra: Sequence[str], run_dir: Path) -> Iterator[str]:
        yield from (*training.arguments, *extra, *self.data, f"trainer.accelerator={self.accelerator}")
        yield override("hydra.run.dir", run_dir)
        if (checkpoint := newest_intact(run_dir)) is not None:
            yield override("resume", checkpoint)

    def _test(self, training: Training, run_dir: Path) -> Iterator[str]:
        trained = yaml.safe_load((run_dir / ".hydra/config.yaml").read_text(encoding="utf-8"))
        yield override("ckpt", run_dir / "checkpoints/last.ckpt")
        yield override("output", run_dir.parent / f"{training.name}.json")
        yield from (f"accelerator={self.accelerator}", f"precision={trained['trainer']['precision']}")
        if self.spec.probe and training.start in ("pretraining", "random"):
            yield "probe=true"
        # From scratch and with few labels, what matters is how much is learned, clean.
        full = training.start == "pretraining" or (training.start == "pretrained" and training.labels == 1)
        if full and self.spec.degradations == "all":
            yield "degrade=all"
        elif training.start != "random":
            kinds = ["clean", *self.spec.degradations] if full else ["clean"]
            yield f"degrade=[{','.join(repr(str(kind)) for kind in kinds)}]"


def trainings(folder: Path, system: str, seed: int, spec: StudySpec) -> Iterator[Training]:
    """What is trained of one system with one seed, the pretraining first."""
    common, last = (f"model={system}", f"seed={seed}"), spec.overrides
    hearing = spec.hearing if system in HEARING else {"pretrain": [], "finetune": []}
    shorter = QUICK_PRETRAINING if spec.quick else ()
    pretrain = (f"experiment={spec.pretrain}", *common, *hearing["pretrain"], *shorter, *last)
    yield Training("pretrain", "pretraining", 1.0, pretrain)
    ckpt = override("ckpt", folder / "pretrain/checkpoints/last.ckpt")
    if spec.probe:
        # A network as it was drawn is one that has taken a single step of no length.
        yield Training("random", "random", 1.0, (*pretrain, "trainer.max_steps=1", "optim.base_lr=1e-12"))
        probe = (f"experiment={spec.probe}", *common, *last)
        yield Training("probe", "probe", 1.0, (*probe, ckpt))
        drawn = override("ckpt", folder / "random/checkpoints/last.ckpt")
        yield Training("probe_random", "random probe", 1.0, (*probe, drawn))
    for share in spec.labels:
        few = (f"data.train_share={share}", *spec.few_labels) if share < 1 else ()
        finetune = (f"experiment={spec.finetune}", *common, *hearing["finetune"], *few, *last)
        options: Mapping[str, Sequence[str]] = spec.tuning or {"": ()}
        yield Training(f"finetune_{share:g}", "pretrained", share, (*finetune, ckpt), options)
        if not spec.quick:
            yield Training(f"scratch_{share:g}", "scratch", share, finetune, options)


def right(results: Mapping[str, Any]) -> list[bool]:
    """Which test clips a classifier's results have right."""
    return [one == other for one, other in zip(results["predictions"], results["labels"], strict=True)]


def summary(run_dir: Path) -> dict[str, float]:
    """The last metrics of a finished run."""
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def probe_rows(results: Mapping[str, Any]) -> Iterator[Row]:
    """Rows of what `frozen_probes` found, if results have any."""
    for name, value in results.items():
        if found := PROBED.fullmatch(name):
            about = {"degradation": "clean", "severity": 0.0, "subset": (found[1] or "all/")[:-1]}
            yield about | {"metric": found[2], "value": value}


def override(key: str, path: Path) -> str:
    """Hydra's override of a path, whatever its characters."""
    text = str(path.absolute()).replace("'", "\\'")
    return f"{key}='{text}'"


def study_tables(
    systems: Sequence[str],
    rows: Sequence[Row],
    controls: Mapping[str, float],
    paired: Sequence[Mapping[str, Any]],
) -> Iterator[Table]:
    """Accuracy and error of masked patches by degradation, frozen probes, few labels with the paired test, controls.

    Means and standard deviations are over seeds.
    """
    values: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        names = ("start", "labels", "degradation", "severity", "subset", "metric")
        values.setdefault((row["system"], *(row[name] for name in names)), []).append(row["value"])

    def cells(*key: Any) -> list[str]:
        found = [values.get((system, *key)) for system in systems]
        return ["-" if seeds is None else spread_text(key[-1], seeds) for seeds in found]

    conditions = list(dict.fromkeys((row["degradation"], row["severity"]) for row in rows))
    accuracy, error = "top-1, pretrained and fine-tuned", "squared error of masked video patches"
    for title, start, metric, subset in (
        *((accuracy, "pretrained", "top1", subset) for subset in ("all", "sound", "silent")),
        (error, "pretraining", "hidden_mse", "sound"),
        ("squared error of those of them that move", "pretraining", "moving_mse", "sound"),
    ):
        body = [[condition_name(*case), *cells(start, 1.0, *case, subset, metric)] for case in conditions]
        yield f"{title}: {subset} clips", ["degradation", *systems], body
    frozen = [(row["start"], row["metric"]) for row in rows if row["start"] in ("random", "pretraining")]
    frozen = [(start, metric) for start, metric in dict.fromkeys(frozen) if PROBED.fullmatch(metric)]
    frozen += [(start, "top1") for start in dict.fromkeys(row["start"] for row in rows) if start.endswith("probe")]
    for subset in ("all", "sound") if frozen else ():
        body = [[f"{start} {metric}", *cells(start, 1.0, "clean", 0.0, subset, metric)] for start, metric in frozen]
        yield f"top-1 of frozen features: {subset} clips", ["features and probe", *systems], body
    starts = list(dict.fromkeys((row["start"], row["labels"]) for row in rows if row["metric"] == "top1"))
    body = [[f"{start} {share:g}", *cells(start, share, "clean", 0.0, "all", "top1")] for start, share in starts]
    yield "top-1, clean, by share of labels", ["start and labels", *systems], body
    if paired:
        counts = [[p["system"], f"{p['labels']:g}", p["pretrained"], p["scratch"], f"{p['p']:.2g}"] for p in paired]
        header = ["system", "labels", "pretrained alone", "scratch alone", "p"]
        yield "test clips that one start alone classifies rightly", header, [list(map(str, line)) for line in counts]
    yield "what linear models know", ["control", "top1"], [[name, f"{value:.1%}"] for name, value in controls.items()]
