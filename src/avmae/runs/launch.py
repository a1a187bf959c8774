"""The processes of a run: which they are, how they are started here, and that none outlives the one that started it."""

import ctypes
import functools
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from itertools import count
from typing import Any, NoReturn

from avmae.errors import InputError, Interrupted
from avmae.runs.scheduler import queue_again

PR_SET_PDEATHSIG = 1
_calls = count()
"""Of `on_first_process`."""


def cores() -> int:
    """How many processors this process may use, which a scheduler may have made fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(function: Callable[[dict[str, Any]], Any], config: dict[str, Any], processes: int) -> Any:
    """Run a function of a config in this process, or in several local ones that know each other; the first's result.

    The processes are torchrun's, started from here with the resolved config, so it works the same inside a sweep. If
    one dies, all end: within a second if the others notice, else 30 s later. Signals are handed on to all of them.
    Where torchrun or SLURM has started us, this process is one of those already.

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

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
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
            where: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": uuid.uuid4().hex}
            logs = DefaultLogsSpecs(log_dir=folder)
            settings = LaunchConfig(1, 1, processes, max_restarts=0, logs_specs=logs, **where)
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
            message = f"{signal.Signals(-failure.exitcode).name} ended it; continue with resume=last"
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
        except InputError:
            raise SystemExit(1) from None

    def _run(self, config: dict[str, Any]) -> Any:
        try:
            return self.function(config)
        except RuntimeError as error:
            if re.search("Connection (closed|reset) by peer", str(error)):
                # Another process has died, and the launcher is to name that one: it ends this one when it has noticed.
                time.sleep(10)
            raise


def started() -> tuple[int, int] | None:
    """Nodes, and processes on each, that torchrun or SLURM has started; None if neither has."""
    if "RANK" in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return int(os.environ["WORLD_SIZE"]) // local, local
    if (tasks := int(os.environ.get("SLURM_NTASKS", 1))) > 1:
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return nodes, tasks // nodes
    return None


def first_process() -> bool:
    """Whether this is the process that logs."""
    return _world()[0] == 0


def on_first_process(function: Callable[[], Any]) -> Any:
    """Call a function on the first of the processes that torchrun or SLURM has started, and tell the others.

    They are told by the store in which torch's process groups find each other: it is there before any group is, and
    unlike a file it is new with each start. If the function failed, the others exit.

    Args:
        function: returns what JSON can hold; called by all in the same order.
    """
    if started() is None:
        return function()
    store, others = _store(), _world()[1] - 1
    key = f"avmae/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_calls)}"
    if not first_process():
        answer = json.loads(store.get(key))
        store.add(f"{key}/told", 1)
        if answer is None:
            raise SystemExit(1)
        return answer[0]
    try:
        answer = [function()]
    except Exception:
        store.set(key, "null")
        # The store may end with this process.
        until = time.monotonic() + 60
        while store.add(f"{key}/told", 0) < others and time.monotonic() < until:
            time.sleep(0.1)
        raise
    store.set(key, json.dumps(answer))
    return answer[0]


def _world() -> tuple[int, int]:
    """This process's number, and how many torchrun or SLURM has started."""
    names = ("RANK", "WORLD_SIZE") if "RANK" in os.environ else ("SLURM_PROCID", "SLURM_NTASKS")
    return int(os.environ.get(names[0], 0)), int(os.environ.get(names[1], 1))


@functools.cache
def _store() -> Any:
    """Torch's own store, kept for as long as this process lives, for it may be the one that serves it."""
    from torch.distributed import rendezvous

    if "RANK" not in os.environ:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        # The address that Lightning's process group will have.
        slurm = SLURMEnvironment(auto_requeue=False)
        os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
    return next(rendezvous("env://", *_world()))[0]


def end_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when the one that started it is gone, however it ended (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        # It ended before the kernel was told.
        os._exit(1)
