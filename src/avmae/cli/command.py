"""What the commands share: composing, plain configs, errors that a user can read, and processes."""

import csv
import errno
import functools
import json
import logging
import multiprocessing
import os
import re
import select
import signal
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from avmae.cli.help import page
from avmae.cli.numbers import refuse_words
from avmae.data.paths import PATHS
from avmae.errors import InputError, Interrupted, printable
from avmae.runs.folder import queue_again, requeued, resume_checkpoint, slurm_step, started_in, torchrun_id
from avmae.runs.launch import end_with_parent, first_process, started
from avmae.runs.settings import spec as spec
from avmae.training.hardware import precision as precision

# Read when torch loads GNU's OpenMP. By default its threads spin for milliseconds while they wait, which takes the
# cores from the reading processes: on a busy machine a run slows down tenfold. Not to spin at all costs a small model
# a third of its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

CONF = str(Path(__file__).parents[1] / "conf")
PRINTING = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}
"""Flags with which a command prints, and does nothing else."""
SHARED = ("fold", "val_groups", "batch_size", "workers", "segments", "crops", "timeout")
"""Settings of data that say the same of any kind of them."""
SAME_KIND = ("val_share", "only", "train_share")


class JobError(CompactHydraException):
    """What is wrong with one job of a multirun; the others go on, and then Hydra prints the message alone."""


def command(config_name: str) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[[], Any]]:
    """Make a function of a resolved plain config a command.

    The config gets ``run_dir``, the folder that Hydra made for this run. Errors of users' making are printed as one
    message, and the process ends with code 1; in a multirun after the other jobs, and with the table of those that did
    not fail.
    """

    def decorate(function: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
        @hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)
        @functools.wraps(function)
        def main(cfg: DictConfig) -> Any:
            known: Any = OmegaConf.load(f"{CONF}/{config_name}.yaml")
            allowed = set(known) | {
                k for d in known.get("defaults", []) if isinstance(d, DictConfig) for k in map(str, d)
            }
            unknown = sorted(set(map(str, cfg)) - {name.removeprefix("optional ") for name in allowed})
            try:
                if unknown:
                    raise InputError(f"unknown key {unknown[0]}; the keys are {', '.join(sorted(map(str, cfg)))}")
                config = plain(cfg)
                refuse_words(config, _files(config_name))
                config["run_dir"] = HydraConfig.get().runtime.output_dir
                result = function(config)
                sys.stdout.flush()
                return result
            except (InputError, InstantiationException, OSError) as error:
                if isinstance(error, BrokenPipeError) and _nobody_reads():
                    raise SystemExit(128 + signal.SIGPIPE) from None
                full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
                # One that names a file says what is wrong with it.
                if isinstance(error, OSError) and error.errno not in full and error.filename is None:
                    raise
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    fail_job(error)
                fail(error)

        @functools.wraps(function)
        def entry() -> Any:
            if not PRINTING.isdisjoint(sys.argv[1:]):
                # As programs of the shell end where nobody reads on.
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if {"-h", "--help"}.isdisjoint(sys.argv[1:]):
                try:
                    return main()
                except (KeyboardInterrupt, SystemExit) as error:
                    # Lightning makes an exit with 1 of Ctrl-C.
                    if not isinstance(error.__context__ if isinstance(error, SystemExit) else error, KeyboardInterrupt):
                        raise
                    print("interrupted", file=sys.stderr)
                    # What torch has to say at exit.
                    logging.disable()
                    raise SystemExit(128 + signal.SIGINT) from None
                finally:
                    SweepTable.finish()
            try:
                print(page(CONF, config_name, [word for word in sys.argv[1:] if not word.startswith("-")]))
            except HydraException as error:
                fail(error)

        return entry

    return decorate


def _files(config_name: str) -> dict[Path, str]:
    """The config files that a command's settings come from, and the key below which each one's are."""
    files = {Path(CONF, f"{config_name}.yaml"): ""}
    for group, choice in HydraConfig.get().runtime.choices.items():
        # A user's own may lie elsewhere.
        if not group.startswith("hydra/") and (file := Path(CONF, group, f"{choice}.yaml")).is_file():
            files[file] = f"{group}."
    return files


def _nobody_reads() -> bool:
    """Whether what is printed goes to a pipe that has no reader any more, as of `head`; then it is thrown away."""
    stream = select.poll()
    stream.register(sys.stdout.fileno(), 0)
    if not stream.poll(0):
        return False
    # Or Python would try again at exit, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain dicts and lists, every interpolation resolved; names what is missing.

    Raises:
        InputError: see `refuse_missing`.
    """
    refuse_missing(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse a config in which a mandatory value was not given: one that is ``???``, or is named by ``requires``.

    A recipe names a key there whose default is null, for OmegaConf keeps null where ``???`` is merged over it. A run
    that is resumed has what it began with.

    Raises:
        InputError: it names all that is missing.
    """
    # Not OmegaConf.missing_keys, which resolves: what names the run's folder would make it.
    values: Any = OmegaConf.to_container(cfg, resolve=False)
    missing = set(_mandatory({key: value for key, value in values.items() if key != "hydra"}))
    if OmegaConf.select(cfg, "resume") is None:
        missing |= {key for key in OmegaConf.select(cfg, "requires") or () if OmegaConf.select(cfg, key) is None}
    if missing:
        names = sorted(missing)
        given = " ".join(f"{name}=VALUE" for name in names)
        raise InputError(f"{' and '.join(names)} must be given: add {given} to the command")


def _mandatory(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of what is ``???``."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _mandatory(value, f"{prefix}{key}.")
        elif value == "???":
            yield f"{prefix}{key}"


class Complete(Callback):
    """Refuses a run that lacks a mandatory value before Hydra makes its folder."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Check the config."""
        try:
            refuse_missing(config)
        except InputError as error:
            # Hydra makes warnings of exceptions here.
            fail(error)


def fail(error: Exception) -> NoReturn:
    """Print an error's own message and exit; AVMAE_TRACEBACK=1 shows where it was raised."""
    print(f"error: {_message(error)}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def fail_job(error: Exception) -> NoReturn:
    """Print an error's own message and the number of the multirun's job, and let the sweeper decide.

    Raises:
        JobError: always.
    """
    message = f"job {HydraConfig.get().job.num}: {_message(error)}"
    # At once, for the other jobs may take days; and all of them, where the sweeper raises the first.
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise JobError(message) from None


def _message(error: Exception) -> str:
    if os.environ.get("AVMAE_TRACEBACK"):
        raise error
    message = str(error)
    if isinstance(error, InstantiationException):
        # Hydra wraps what the constructor raised; the user needs that alone.
        message = str(error.__cause__ or error).splitlines()[0]
        key = re.search(r"full_key: (\S+)", str(error))
        message = f"{key[1]}: {message}" if key and not isinstance(error.__cause__, InputError) else message
    # What torch makes of an error in a reading process: its traceback, which ends with the message.
    message = re.sub(r"Caught \w+ in DataLoader worker.*\n[\w.]*Error: ", "", message, flags=re.DOTALL).rstrip()
    return printable(message)


def check_writable(file: Path, key: str = "output") -> None:
    """Find out whether a file can be written, before the hours that it takes to have something to write.

    Raises:
        InputError: it cannot.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whatever forbids it: rights, a read-only disk, a folder that is none.
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix="."):
            pass
        if file.exists():
            file.open("ab").close()
    except OSError as error:
        raise InputError(f"{key}={file} cannot be written: {error.strerror}; choose another") from error


def construct(key: str, config: Mapping[str, Any], **objects: Any) -> Any:
    """Build what a config node's ``_target_`` names, from its settings and from objects made elsewhere.

    Raises:
        InputError: a key that the target does not take.
    """
    if not config.get("_target_"):
        raise InputError(f"{key}: choose a kind, as {key}=ucf101")
    # Partial, or Hydra would turn settings objects into configs.
    target = hydra.utils.instantiate(config, _partial_=True, _convert_="all")
    try:
        return target(**objects)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise InputError(f"unknown key in {key}: {str(error).split('()')[-1].strip()}") from error
        if missing := re.search(r"missing \d+ required positional arguments?: '(\w+)'", str(error)):
            raise InputError(f"{key}.{missing[1]} must be given") from error
        raise
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{key}: {str(error).splitlines()[0]}") from error


def chosen_data(settings: dict[str, Any], data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `evaluation_data` takes, where the command line may choose another kind of data by `data=KIND`.

    Another kind brings its own defaults, but which fold is tested, and how clips are read and scored, is as in the
    checkpoint unless the command line names it; of the same kind also which classes and which share of them.

    Args:
        settings: the checkpoint's config.
        data: the command's.
    """
    job = HydraConfig.get()
    if job.runtime.choices["data"] == "checkpoint":
        return settings, data
    typed = {word.lstrip("+").split("=")[0] for word in job.overrides.task}
    own, target = settings.get("data", {}), data["_target_"]
    kept = SHARED + (SAME_KIND if target == own.get("_target_") else ())
    taken = {key: own[key] for key in kept if key in own and key in data and f"data.{key}" not in typed}
    return {**settings, "data": {**data, **taken}}, {"_target_": target}


def evaluation_data(
    settings: Mapping[str, Any], given: Mapping[str, Any], modalities: Collection[str], ckpt: str | Path | None = None
) -> Any:
    """The data module of a checkpoint, changed by what is given; UCF101 where the checkpoint is another project's.

    Another data module than the checkpoint's reads as much at once and scores as many views, of other projects'
    checkpoints 5 segments x 3 crops.

    Args:
        settings: the checkpoint's config.
        given: the command's `data`; None keeps what the checkpoint says.
        modalities: of the model.
        ckpt: the checkpoint's path, to say where it was trained if its data are not found.
    """
    from avmae.clip import ClipSpec

    given = {key: value for key, value in given.items() if value is not None}
    data = settings.get("data", {"_target_": "avmae.data.datamodule.UCF101DataModule", "segments": 5, "crops": 3})
    if given.get("_target_", data.get("_target_")) != data.get("_target_"):
        data = {key: data[key] for key in ("segments", "crops", "batch_size", "workers") if key in data}
    refuse_foreign_code(data | {k: v for k, v in given.items() if k == "_target_"}, trusted=given.get("_target_"))
    if "root" not in data | given and "train" not in data | given and "test" not in given:
        raise InputError("the checkpoint names no data; give data.root=DIR, the folder of UCF101, or data=KIND as well")
    if "root" in given and "://" not in str(given["root"]) and not Path(given["root"]).expanduser().is_dir():
        raise InputError(f"data.root={given['root']} is not a folder; give the data set's")
    if data.get("manifest") and not Path(data["manifest"]).expanduser().is_file():
        # It is where training ran; all that is lost is which clips of train and val cannot be read.
        data = data | {"manifest": None}
    refuse_lost_data({key: value for key, value in data.items() if key not in given}, ckpt)
    clip = ClipSpec(**settings["clip"])
    return construct("data", data | given, clip=clip, audio="audio" in modalities, seed=settings["seed"])


def refuse_lost_data(data: Mapping[str, Any], ckpt: str | Path | None) -> None:
    """Say where the data of a checkpoint may be found, if they are not where it says.

    Args:
        data: the checkpoint's, but for what is given anew.
        ckpt: its path.

    Raises:
        InputError: there is nothing at one of its paths.
    """
    # The embedded data sets are written where they are missing.
    paths = {key: data.get(key) for key in PATHS if not (key == "root" and "groups" in data)}
    for key, path in paths.items():
        if not isinstance(path, str) or "://" in path or Path(path).expanduser().exists():
            continue
        folder = None if ckpt is None else started_in(ckpt)
        hint = f"; training was started in {folder}" if folder and not Path(path).is_absolute() else ""
        there = os.path.join(folder or "", path)
        raise InputError(
            f"the checkpoint's data.{key}={path} is not there{hint}; give data.{key}="
            f"{there if os.path.exists(there) else 'PATH'}"
        )


def refuse_foreign_code(data: Mapping[str, Any], trusted: str | None = None) -> None:
    """Keep a checkpoint's config from naming what is to be called: only avmae's own data modules, with plain values.

    Args:
        data: the checkpoint's.
        trusted: another data module that the user named.

    Raises:
        InputError: it names anything else.
    """
    target = data.get("_target_")
    nested = [value for key, value in data.items() if key != "_target_"]
    special = [key for key in data if str(key).startswith("_") and key != "_target_"]
    for value in nested:
        # What is found is appended to the list that is walked.
        if isinstance(value, Mapping):
            special += [key for key in value if str(key).startswith("_")]
            nested += value.values()
        elif isinstance(value, list):
            nested += value
    own = re.fullmatch(r"avmae\.data\.datamodule\.\w+DataModule", str(target))
    if not (own or target == trusted is not None) or special:
        raise InputError(
            f"the checkpoint asks to call {target} with {', '.join(map(str, special)) or 'plain values'} to read its "
            "data, which is no data module of avmae's; if you trust it, set data._target_ yourself"
        )


def run_folder(logs: str, name: str, resume: str | None) -> str:
    """Where a run writes: a new folder, or that of the run it resumes."""
    if resume is None and (run := torchrun_id() or slurm_step()) is not None:
        # Each process asks for itself, and the time may differ.
        return f"{logs}/{name}/{run}"
    if resume is None:
        return claimed(f"{logs}/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S}")
    try:
        return str(resume_checkpoint(logs, name, resume).parent.parent)
    except InputError as error:
        # Hydra asks for the folder before it calls the command, and would show where it asked.
        fail(error)


def sweep_folder(logs: str, name: str, resume: str | None) -> str:
    """Where a sweep writes: a new folder, or with ``resume=last`` that of the newest sweep of the name."""
    if resume != "last":
        return claimed(f"{logs}/{name}/{datetime.now():%Y-%m-%d_%H-%M-%S}_sweep")
    # They are named by their time.
    found = sorted(path for path in Path(logs, name).glob("*_sweep*") if path.is_dir())
    if not found:
        fail(InputError(f"resume=last: no sweep under {logs}/{name}; start without resume="))
    return str(found[-1])


def claimed(folder: str) -> str:
    """Make a new folder, by another name if what began in the same second has this one."""
    # Torchrun's processes share one, where none of them was told a name.
    if "RANK" in os.environ:
        return folder
    for suffix in chain([""], (f"_{number}" for number in count(2))):
        try:
            Path(folder + suffix).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            # See `run_folder`.
            fail(InputError(f"{folder} cannot be made: {error.strerror}; choose another logs="))
        return folder + suffix
    raise AssertionError("numbers do not end")


def launch(function: Callable[[dict[str, Any]], Any], config: dict[str, Any], processes: int) -> Any:
    """Run a function of a config in this process, or in several local ones that know each other.

    The processes are torchrun's, started from here with the resolved config, so it works the same inside a sweep. If
    one dies, all end: within a second if the others notice, else 30 s later. Signals are handed on to all of them.
    Where torchrun or SLURM has started us, this process is one of those already.

    Returns:
        What the first process returned.

    Raises:
        InputError: a process failed with one, or died.
        Interrupted: a signal ended them.
    """
    if processes == 1 or started():
        return function(config)
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    def hand_on(number: int, frame: Any) -> NoReturn:
        raise SignalException(f"signal {number}", signal.Signals(number))

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # Seconds for a step and for writing the checkpoint, after a signal; then what is left is killed.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")
    # What it says of a failed process says less than our message.
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").setLevel(logging.CRITICAL)
    # Torch hands on SIGTERM and SIGINT itself.
    before = {number: signal.signal(number, hand_on) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    try:
        # Where the processes leave their errors; torch itself would never delete it.
        with tempfile.TemporaryDirectory(prefix="avmae_", ignore_cleanup_errors=True) as folder:
            settings = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                max_restarts=0,
                logs_specs=DefaultLogsSpecs(log_dir=folder),
            )
            return elastic_launch(settings, _Process(function))(config)[0]
    except SignalException as error:
        if error.sigval == signal.SIGUSR2:
            # After SIGUSR1 the processes have asked SLURM themselves; submitit's handler is this process's.
            queue_again(error.sigval, before[signal.SIGUSR2])
        raise Interrupted(128 + error.sigval) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 128:
            # The signal did not come by way of this process.
            raise Interrupted(failure.exitcode) from None
        message = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        message = re.sub(r"^(InputError|MediaError): ", "", message)
        if failure.exitcode < 0:
            message = f"{signal.Signals(-failure.exitcode).name} ended it; go on with resume=last"
        raise InputError(f"process {rank} of {processes} failed: {message}") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for child in multiprocessing.active_children():
            child.kill()


class _Process:
    """One of several processes; leaves its error where the launcher reads it."""

    def __init__(self, function: Callable[[dict[str, Any]], Any]) -> None:
        self.function = function
        self.__name__ = self.__qualname__ = function.__name__

    def __call__(self, config: dict[str, Any]) -> Any:
        from torch.distributed.elastic.multiprocessing.errors import record

        end_with_parent()
        try:
            return record(self._run)(config)
        except (InputError, InstantiationException):
            raise SystemExit(1) from None

    def _run(self, config: dict[str, Any]) -> Any:
        try:
            return self.function(config)
        except RuntimeError as error:
            if re.search("Connection (closed|reset) by peer", str(error)):
                # Another process has died, and the launcher is to name that one: it ends this one when it has noticed.
                time.sleep(10)
            raise


def quiet_libraries() -> None:
    """Silence advice that does not apply here; errors and our own lines stay."""
    # Their own import would set the level again.
    import lightning.fabric
    import lightning.pytorch  # noqa: F401

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR if not first_process() else logging.WARNING)
    for line in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*dataloader is not resumable.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*isinstance.treespec.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
        ".*You defined a `validation_step` but have no `val_dataloader`.*",
        ".*Total length of .list. across ranks is zero.*",
        ".*could not find the monitored key.*",
        ".*returned a view tensor.*",
        ".*It is recommended to use .self.log.*sync_dist=True.*",
    ):
        warnings.filterwarnings("ignore", line)


class SweepTable(Callback):
    """Ends a multirun with one table over its jobs, on the terminal and in `sweep.csv`.

    It reads what the jobs left in their folders, for they may have run elsewhere.
    """

    _folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note the folder: the end is not announced of a multirun that a failed job or a signal ends."""
        SweepTable._folder = Path(config.hydra.sweep.dir)

    @classmethod
    def finish(cls) -> None:
        """Print and write the table of the multirun that has ended, if there was one."""
        if cls._folder is None:
            return
        folder, cls._folder = cls._folder, None
        rows = []
        for summary in folder.glob("*/summary.json"):
            overrides: Any = OmegaConf.load(summary.parent / ".hydra" / "overrides.yaml")
            metrics = {k: f"{v:.4g}" for k, v in json.loads(summary.read_text()).items()}
            row = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
            rows.append({"job": summary.parent.name, **row, **metrics})
        if not rows:
            return
        rows.sort(key=lambda row: (len(row["job"]), row["job"]))
        names = list(dict.fromkeys(name for row in rows for name in row))
        # What all jobs share, such as a long path, says nothing about the sweep.
        varied = [n for n in names if n == "job" or len({row.get(n, "") for row in rows}) > 1 or len(rows) == 1]
        print_table(varied, [[row.get(name, "") for name in varied] for row in rows])
        file = folder / "sweep.csv"
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(rows)
        print(f"wrote {file}")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print aligned columns."""
    rows = [[printable(cell, keep="") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, ["-" * width for width in widths], *rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([row[0].ljust(len(first)), *rest]))


OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("requeued", requeued, use_cache=True, replace=True)
