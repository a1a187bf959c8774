"""The demo's server as a process, asked over HTTP as browsers and attackers do."""

import json
import os
import re
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from commands import ENVIRONMENT
from files import save
from systems import autoencoder, classifier, disturb

SETTINGS = {"ratio": 0.5, "audio_ratio": 0.5, "seed": 0, "position": 0.5, "statistics": "with true patch statistics"}

WATCH = """
import os, sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments[:2]
        with open(os.environ["WATCHED"], "a") as stream:
            stream.write(f"{event} {address[0] if isinstance(address, tuple) else address}\\n")
sys.addaudithook(note)
"""
"""Run by every Python at its start: notes where it connects to."""


@dataclass
class Server:
    process: subprocess.Popen
    url: str
    folder: Path

    def ask(self, path: str, **settings: Any) -> httpx.Response:
        """A request as it is: neither paths nor headers are tidied up by the client."""
        return httpx.request(settings.pop("method", "GET"), self.url + path, timeout=60, **settings)

    def upload(self, file: Path) -> httpx.Response:
        with file.open("rb") as stream:
            return self.ask("/gradio_api/upload", method="POST", files={"files": (file.name, stream)})

    def show(self, path: str, **changes: Any) -> tuple[bool, Any]:
        """What the page does with a file that a client names: whether it worked, and what came or the message."""
        settings = SETTINGS | changes
        data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, *settings.values()]
        session = uuid.uuid4().hex
        names = self.ask("/config").json()["dependencies"]
        (number,) = [d["id"] for d in names if d["api_name"] == "reconstruct"]
        joined = self.ask(
            "/gradio_api/queue/join", method="POST", json={"data": data, "fn_index": number, "session_hash": session}
        )
        assert joined.status_code == 200, joined.text
        with httpx.stream("GET", f"{self.url}/gradio_api/queue/data?session_hash={session}", timeout=60) as events:
            for line in events.iter_lines():
                event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if event.get("msg") == "process_completed":
                    output = event["output"]
                    return event["success"], output["data"] if event["success"] else output.get("error")
        raise AssertionError("the server said nothing")


def start(folder: Path, *overrides: str) -> Server:
    (folder / "sitecustomize.py").write_text(WATCH)
    paths = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    hostile = {"GRADIO_SHARE": "True", "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_ALLOWED_PATHS": "/"}
    (folder / "temporary").mkdir()
    environment = ENVIRONMENT | hostile | {"PYTHONPATH": paths, "WATCHED": str(folder / "watched.txt")}
    printed = folder / "printed.txt"
    with printed.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "avmae.demo", f"ckpt={folder}/last.ckpt", *overrides],
            cwd=folder,
            env=environment | {"TMPDIR": str(folder / "temporary")},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    while not (found := re.search(r"serving (\S+?)/? until", printed.read_text())):
        assert process.poll() is None, printed.read_text()
        time.sleep(0.05)
    return Server(process, found[1].replace("0.0.0.0", "127.0.0.1"), folder)


def write_checkpoints(folder: Path) -> None:
    for name, network in {"last.ckpt": autoencoder("avmae"), "classifier.ckpt": classifier("avmae")}.items():
        disturb(network)
        save(folder / name, network)
