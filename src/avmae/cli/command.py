"""What the commands share: composing, plain configs, errors that a user can read, and processes."""

import errno
import functools
import logging
import os
import re
import select
import signal
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from avmae.cli.config import CONF, plain, refuse_missing, refuse_words
from avmae.cli.help import page
from avmae.cli.table import SweepTable
from avmae.errors import InputError, printable
from avmae.runs.folder import requeued, resume_checkpoint
from avmae.runs.launch import first_process
from avmae.runs.scheduler import slurm_step, torchrun_id

# Read when torch loads GNU's OpenMP. By default its threads spin for milliseconds while they wait, which takes the
# cores from the reading processes: on a busy machine a run slows down tenfold. Not to spin at all costs a small model
# a third of its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

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
            except (InputError, OSError) as error:
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
    # What torch makes of an error in a reading process: its traceback, which ends with the message.
    message = re.sub(r"Caught \w+ in DataLoader worker.*\n[\w.]*Error: ", "", message, flags=re.DOTALL).rstrip()
    return printable(message)


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


OmegaConf.register_new_resolver("run_folder", run_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("sweep_folder", sweep_folder, use_cache=True, replace=True)
OmegaConf.register_new_resolver("requeued", requeued, use_cache=True, replace=True)
