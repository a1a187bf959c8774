"""`python -m avmae.dashboard`: a W&B dashboard for the runs of a project."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.errors import InputError

TIMEOUT_SECONDS = 10


@command("dashboard")
def main(config: dict[str, Any]) -> None:
    """Create the dashboard where there is a W&B server; else write down what it has."""
    check(config["sections"])
    reason = unreachable()
    if reason is None:
        print(f"created {create(config)}")
        return
    output = Path(config["output"]).expanduser()
    content = {key: config[key] for key in ("entity", "project", "name", "sections")}
    try:
        output.write_text(json.dumps(content, indent=2), encoding="utf-8")
    except OSError as error:
        raise InputError(f"output={output} cannot be written: {error.strerror}; choose another") from error
    print(f"{reason}; wrote {output}, which describes the dashboard: run this again to create it")


def check(sections: dict[str, list[dict[str, Any]]]) -> None:
    """Look over what was asked for.

    Raises:
        InputError: a panel is none.
    """
    for section, panels in sections.items():
        for panel in panels:
            if panel.keys() - {"title"} not in ({"lines"}, {"regex"}, {"media"}) or "title" not in panel:
                raise InputError(f"sections.{section}: a panel has a title and lines, regex or media, not {panel}")


def unreachable() -> str | None:
    """Why no W&B server can be used, if so."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    if os.environ.get("WANDB_MODE") == "offline":
        return "WANDB_MODE=offline"
    if not wandb.login(prompt=False, verify=False):
        return "no W&B login (wandb login)"
    server = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(server, timeout=TIMEOUT_SECONDS).close()
    except urllib.error.HTTPError:
        return None
    except OSError as error:
        return f"{server} cannot be reached ({error})"
    return None


def create(config: dict[str, Any]) -> str:
    """Save the dashboard as a view of the project; returns its address.

    Raises:
        InputError: a package is missing, or the server refuses.
    """
    import wandb

    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise InputError("this needs W&B's package for dashboards: pip install 'avmae[dashboard]'") from error

    def build(panel: dict[str, Any]) -> Any:
        if "media" in panel:
            return panels.MediaBrowser(title=panel["title"], media_keys=panel["media"])
        # The machine is measured by time, all else by step.
        names = panel.get("regex") or panel["lines"][0]
        x = "RelativeTime(Wall)" if names.startswith("system/") else "trainer/global_step"
        return panels.LinePlot(title=panel["title"], x=x, y=panel.get("lines", []), metric_regex=panel.get("regex"))

    sections = [
        workspaces.Section(name=name, panels=[build(panel) for panel in found], is_open=True)
        for name, found in config["sections"].items()
    ]
    try:
        entity = config["entity"] or wandb.Api().default_entity
        return workspaces.Workspace(entity, config["project"], config["name"], sections).save().url
    except Exception as error:
        # W&B's client raises errors of many kinds.
        raise InputError(f"the W&B server refuses: {error}; see entity= and project=") from error


if __name__ == "__main__":
    main()
