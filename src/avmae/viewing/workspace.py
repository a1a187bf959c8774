"""The W&B dashboard as a saved view of a project."""

import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from avmae.errors import InputError

TIMEOUT_SECONDS = 10
Sections = Mapping[str, Sequence[Mapping[str, Any]]]


def check(sections: Sections) -> None:
    """Raise an InputError that names the first panel without a title, or without one of lines, regex and media."""
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


def create(sections: Sections, entity: str | None, project: str, name: str) -> str:
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

    def build(panel: Mapping[str, Any]) -> Any:
        if "media" in panel:
            return panels.MediaBrowser(title=panel["title"], media_keys=panel["media"])
        # Metrics of the machine are shown over time, all others over steps.
        names = panel.get("regex") or panel["lines"][0]
        x = "RelativeTime(Wall)" if names.startswith("system/") else "trainer/global_step"
        return panels.LinePlot(title=panel["title"], x=x, y=panel.get("lines", []), metric_regex=panel.get("regex"))

    built = [
        workspaces.Section(name=title, panels=[build(panel) for panel in found], is_open=True)
        for title, found in sections.items()
    ]
    try:
        return workspaces.Workspace(entity or wandb.Api().default_entity, project, name, built).save().url
    except Exception as error:
        # W&B's client raises errors of many kinds.
        raise InputError(f"the W&B server refuses: {error}; see entity= and project=") from error
