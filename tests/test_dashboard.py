"""The dashboard against a server of W&B's protocol, and sweep files as W&B's agent expands them."""

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from commands import ENVIRONMENT, error, run
from hydra import compose, initialize_config_dir
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from avmae.cli.config import CONF

SWEEPS = Path(__file__).parents[1] / "sweeps"


class Server(http.server.BaseHTTPRequestHandler):
    views: list[dict] = []

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        answer: dict = {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if b"upsertView" in sent:
            self.views.append(json.loads(sent)["variables"])
            answer = {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}}
        content = json.dumps({"data": answer}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def dashboard(folder: Path, *overrides: str, **variables: str) -> str:
    environment = {k: v for k, v in ENVIRONMENT.items() if not k.startswith("WANDB") and "proxy" not in k.lower()}
    environment |= {"HOME": str(folder), "NETRC": str(folder / "none"), **variables}
    command = [sys.executable, "-m", "avmae.dashboard", *overrides]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True, stderr=subprocess.STDOUT)


def test_a_server_gets_the_dashboard(server: str, tmp_path: Path) -> None:
    printed = dashboard(tmp_path, "project=mine", WANDB_API_KEY="a" * 40, WANDB_BASE_URL=server)
    assert printed == f"created {server}/me/mine?nw=abc\n"
    (view,) = Server.views
    assert (view["entityName"], view["projectName"], view["displayName"]) == ("me", "mine", "avmae")
    sections = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    panels = {section["name"]: section["panels"] for section in sections}
    assert {"losses", "probe", "reconstructions", "system"} <= panels.keys()
    assert panels["losses"][0]["config"]["metrics"] == ["train/loss", "train/loss_video", "train/loss_audio"]
    assert "reconstructions/1_video" in panels["reconstructions"][1]["config"]["mediaKeys"]


def test_without_login_or_server_a_file_describes_it(tmp_path: Path) -> None:
    printed = dashboard(tmp_path)
    assert printed.startswith("no W&B login")
    assert len(printed.splitlines()) == 1
    written = json.loads((tmp_path / "wandb_dashboard.json").read_text())
    assert written["sections"]["losses"][0]["lines"][0] == "train/loss"
    away = dashboard(tmp_path, "output=other.json", WANDB_API_KEY="a" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "cannot be reached" in away
    assert json.loads((tmp_path / "other.json").read_text()) == written


def test_a_panel_that_is_none_is_named(tmp_path: Path) -> None:
    printed = run("dashboard", "sections.losses=[{title: x, line: [train/loss]}]", cwd=tmp_path, ok=False)
    assert "sections.losses" in error(printed)


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_hydra_accepts_what_an_agent_runs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = yaml.safe_load(file.read_text())
    monkeypatch.setenv("UCF101", "/data/ucf101")
    monkeypatch.setenv("CKPT", "weights.ckpt")
    drawn = {
        name: {"value": choice["values"][0] if "values" in choice else choice["min"]}
        for name, choice in sweep["parameters"].items()
    }
    # As wandb.wandb_agent.Agent does.
    macros = create_sweep_command_args({"args": drawn})
    macros |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    words: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        macro = word.startswith("${") and word.endswith("}")
        words += macros[word[2:-1]] if macro else [word]
    assert words[:4] == ["/usr/bin/env", "python", "-m", "avmae.train"]
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", words[4:])
    for name, value in drawn.items():
        found = config
        for key in name.split("."):
            found = found[key]
        assert found == value["value"]
    assert config.data.root == "/data/ucf101"
    assert "wandb" in config.logger
    # What is compared needs validation clips.
    assert config.data.val_groups > 0
    watched = {"pretrain": {"val/loss", "val/knn_top1"}, "classify": {"val/top1"}}
    assert sweep["metric"]["name"] in watched[config.task.name]


def test_the_run_of_an_agent_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avmae.training.loggers import wandb_logger

    monkeypatch.setenv("WANDB_RUN_ID", "swept123")
    assert wandb_logger(str(tmp_path), "avmae", "run").version == "swept123"
