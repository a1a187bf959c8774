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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from avmae.errors import InputError, Interrupted, printable
from avmae.runs.folder import queue_again, requeued, resume_checkpoint, slurm_step, torchrun_id
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


def check_counts(config: Mapping[str, Any], *keys: str) -> None:
    """Raise an InputError unless settings are whole numbers from 1, or null where the config file says so."""
    for key in keys:
        if config[key] is not None and (not isinstance(config[key], int) or config[key] < 1):
            raise InputError(f"{key}={config[key]} must be a whole number from 1")


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


def chosen_data(data: dict[str, Any]) -> tuple[dict[str, Any], set[str] | None]:
    """What `evaluation_data` takes as `given` and `typed`: the command line may choose a kind by `data=KIND`."""
    job = HydraConfig.get()
    if job.runtime.choices["data"] == "checkpoint":
        return data, None
    return data, {word.lstrip("+").split("=")[0].removeprefix("data.") for word in job.overrides.task}


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


def if_may_lack_audio(value: Any, modalities: Sequence[str], may_lack: Sequence[str]) -> Any:
    """A recipe's share of clips that lose their audio; 0 for systems without audio, or without a token in its place."""
    return value if "audio" in modalities and "audio" in may_lack else 0.0


OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("requeued", requeued, use_cache=True, replace=True)
OmegaConf.register_new_resolver("if_may_lack_audio", if_may_lack_audio, replace=True)
