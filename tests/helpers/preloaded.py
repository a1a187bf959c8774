"""Runs commands in processes forked from this one, which has imported the libraries and done nothing else.

A request is a line of JSON on stdin, the answer a line with the exit code. `python -m avmae.NAME` is what each process
does, but for the seconds that it would take to import torch and Lightning.
"""

import atexit
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import hydra  # noqa: F401
import torchvision.transforms.v2  # noqa: F401


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        process = os.fork()
        if process == 0:
            become(**request)
        print(wait(process, request["timeout"]), flush=True)


def wait(process: int, timeout: float) -> int:
    end = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.005)


def become(module: str, arguments: list[str], cwd: str, output: str, **_: Any) -> NoReturn:
    """Be `python -m module`, and end as a process ends."""
    os.setsid()
    os.chdir(cwd)
    for number, stream in ((0, os.open(os.devnull, os.O_RDONLY)), (1, os.open(output, os.O_WRONLY | os.O_CREAT))):
        os.dup2(stream, number)
    os.dup2(1, 2)
    sys.argv, sys.path[0] = [module, *arguments], cwd
    code: Any = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
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
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    main()
