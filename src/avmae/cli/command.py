"""What makes a function a command: Hydra composes its config, and errors become messages."""

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
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from avmae.cli.config import CONF, settings
from avmae.cli.help import page
from avmae.cli.table import SweepTable
from avmae.cli.typos import refuse_typos
from avmae.errors import InputError, printable
from avmae.runs.folder import settle_sweep
from avmae.runs.launch import first_process

# Read when torch loads GNU's OpenMP. By default its threads spin for milliseconds while they wait, which takes the
# cores from the reading processes: on a busy machine a run slows down tenfold. Not to spin at all costs a small model
# a third of its speed.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

PRINTING = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}
"""Flags with which a command prints, and does nothing else."""


class JobError(CompactHydraException):
    """What is wrong with one job of a multirun; the others run, and then Hydra prints the message alone."""


def command(config_name: str) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[[], Any]]:
    """Make a function of a resolved plain config a command.

    Errors that are the user's are printed as one message, and the process ends with code 1; in a multirun after the
    other jobs, and with the table of those that did not fail.
    """

    def decorate(function: Callable[[dict[str, Any]], Any]) -> Callable[[], Any]:
        @hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)
        @functools.wraps(function)
        def main(cfg: DictConfig) -> Any:
            try:
                result = function(settings(cfg, config_name))
                sys.stdout.flush()
                return result
            except (InputError, OSError) as error:
                if isinstance(error, BrokenPipeError) and _nobody_reads():
                    raise SystemExit(128 + signal.SIGPIPE) from None
                full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
                # One that names a file says what is wrong with it.
                if isinstance(error, OSError) and error.errno not in full and error.filename is None:
                    raise
                if HydraConfig.get().mode != RunMode.MULTIRUN:
                    fail(error)
                message = f"job {HydraConfig.get().job.num}: {_message(error)}"
                # At once, for the other jobs may take days; and all of them, where the sweeper raises the first.
                print(f"error: {message}", file=sys.stderr, flush=True)
                raise JobError(message) from None

        return functools.wraps(function)(functools.partial(_start, main, config_name))

    return decorate


def _start(main: Callable[[], Any], config_name: str) -> Any:
    """Run a command, or print its page."""
    if not PRINTING.isdisjoint(sys.argv[1:]):
        # As programs of the shell end where nobody reads on.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        try:
            print(page(CONF, config_name, [word for word in sys.argv[1:] if not word.startswith("-")]))
        except HydraException as error:
            fail(error)
        return None
    try:
        refuse_typos(config_name, sys.argv[1:])
        return main()
    except InputError as error:
        fail(error)
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


def _nobody_reads() -> bool:
    """Whether what is printed goes to a pipe that has no reader any more, as of `head`; then it is thrown away."""
    stream = select.poll()
    stream.register(sys.stdout.fileno(), 0)
    if not stream.poll(0):
        return False
    # Or Python would try again at exit, and complain.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


class Folders(Callback):
    """Keeps Hydra from making the folder of a run, which the command does if nothing is wrong; settles a sweep's."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Hand the folder of ``hydra.run.dir=DIR`` to the command."""
        with read_write(config.hydra):
            config.run_dir, config.hydra.run.dir = config.hydra.run.dir or config.run_dir, ""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle the folder, for the sweeper and for its jobs, whose config is composed anew."""
        if config.hydra.sweep.dir:
            return
        try:
            folder = settle_sweep(config.logs, config.name, config.resume)
        except InputError as error:
            # Hydra makes warnings of exceptions here.
            fail(error)
        with read_write(config.hydra):
            config.hydra.sweep.dir = folder
            config.hydra.overrides.hydra.append("hydra.sweep.dir='{}'".format(folder.replace("'", "\\'")))


def fail(error: Exception) -> NoReturn:
    """Print an error's own message and exit; AVMAE_TRACEBACK=1 shows where it was raised."""
    print(f"error: {_message(error)}", file=sys.stderr, flush=True)
    raise SystemExit(1)


def _message(error: Exception) -> str:
    if os.environ.get("AVMAE_TRACEBACK"):
        raise error
    message = str(error)
    # What torch makes of an error in a reading process: its traceback, which ends with the message.
    message = re.sub(r"Caught \w+ in DataLoader worker.*\n[\w.]*Error: ", "", message, flags=re.DOTALL).rstrip()
    return printable(message)


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
