"""Runs Python in processes forked from this one, which has imported the libraries and done nothing else.

A request is a line of JSON on stdin, the answer a line with the number of the process; its exit code goes to a file.
`python -m MODULE` is what each process does, but for the seconds that it would take to import torch and Lightning. What
it starts of Python's itself, such as the processes of a run or the trainings of a study, is forked from it in turn.
"""

import _posixsubprocess
import atexit
import concurrent.futures.process
import contextlib
import gc
import json
import logging
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import warnings
import weakref
from pathlib import Path
from typing import Any, NoReturn

import hydra  # noqa: F401
import timm.optim  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
from hydra.core.global_hydra import GlobalHydra
from wandb.sdk.data_types._private import MEDIA_TMP

import avmae.data.sources.ucf101
import avmae.evaluation.results
import avmae.training.build
import avmae.training.loggers
import avmae.training.reconstructions
import avmae.viewing.reconstruction  # noqa: F401

execute = _posixsubprocess.fork_exec


def main() -> None:
    running: dict[int, str] = {}
    # What is never looked at by a collection is never copied.
    gc.freeze()
    # Others' programs are executed as ever.
    _posixsubprocess.fork_exec = subprocess._fork_exec = fork_python  # type: ignore[attr-defined]
    while True:
        if select.select([sys.stdin], [], [], 0.005 if running else None)[0]:
            if not (line := sys.stdin.readline()):
                break
            request = json.loads(line)
            if (process := os.fork()) == 0:
                become(**request)
            running[process] = request["code"]
            print(process, flush=True)
        for process in list(running):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                Path(running.pop(process)).write_text(f"{os.waitstatus_to_exitcode(status)}\n")
    for process in running:
        os.killpg(process, signal.SIGKILL)


def become(arguments: list[str], cwd: str, output: str, env: dict[str, str], file_size: int, **_: Any) -> NoReturn:
    """Be a process that a shell starts."""
    os.setsid()
    os.chdir(cwd)
    for number, stream in ((0, os.open(os.devnull, os.O_RDONLY)), (1, os.open(output, os.O_WRONLY | os.O_CREAT))):
        os.dup2(stream, number)
    os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(env)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    python(arguments)


def fork_python(arguments: Any, executables: Any, close_fds: Any, kept: Any, cwd: Any, env: Any, *rest: Any) -> int:
    """Stands for `_posixsubprocess.fork_exec`, by which subprocess and multiprocessing start all that they start."""
    # Those of `worker_pool`, which alone begin with Ctrl-C held back, have been seen to hang when they were forked.
    pool = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    if pool or os.fsdecode(arguments[0]) != sys.executable:
        return execute(arguments, executables, close_fds, kept, cwd, env, *rest)
    streams, start_new_session, before = (rest[0], rest[3], rest[5]), rest[9], rest[15]
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    try:
        for number, stream in enumerate(streams):
            if stream >= 0:
                os.dup2(stream, number)
        for number in map(int, os.listdir("/dev/fd")):
            if number > 2 and (number not in kept or number == rest[7]):
                with contextlib.suppress(OSError):
                    os.close(number)
        if cwd is not None:
            os.chdir(cwd)
        if env is not None:
            os.environ.clear()
            os.environ.update(line.split("=", 1) for line in map(os.fsdecode, env))
        if start_new_session:
            os.setsid()
        if before is not None:
            before()
        python([os.fsdecode(argument) for argument in arguments[1:]])
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def forget() -> None:
    """Drop what executing a program would: what the parent is to do at its exit or on signals, and its settings."""
    tempfile.tempdir = None
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    # W&B's folder for temporary files is the first process's.
    atexit.unregister(MEDIA_TMP.cleanup)
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]
    multiprocessing.util._finalizer_registry.clear()  # type: ignore[attr-defined]
    tracker = multiprocessing.resource_tracker._resource_tracker  # type: ignore[attr-defined]
    tracker._fd = tracker._pid = None
    multiprocessing.process._children.clear()  # type: ignore[attr-defined]
    concurrent.futures.process._threads_wakeups.clear()  # type: ignore[attr-defined]
    logging.disable(logging.NOTSET)
    logging.root.handlers.clear()
    GlobalHydra.instance().clear()


def python(arguments: list[str]) -> NoReturn:
    """Be `python ARGUMENTS`, and end as a process ends."""
    forget()
    while arguments[0].startswith("-") and arguments[0] not in ("-c", "-m"):
        # Flags; that of -X stands apart.
        arguments = arguments[2 if arguments[0] == "-X" else 1 :]
    kind, what, *others = arguments if arguments[0] in ("-c", "-m") else ["", *arguments]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [os.getcwd() if kind else str(Path(what).parent), *(p for p in paths if p not in sys.path[1:])]
    sys.argv = [kind or what, *others]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules.pop("__mp_main__", None)
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    code: Any = 0
    try:
        if kind == "-c":
            exec(what, sys.modules["__main__"].__dict__)
        elif kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(what, run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if not stream.closed:
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main()
