"""`python -m avmae.dashboard`: a W&B dashboard for the runs of a project."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.runs.files import write_json


def dashboard(
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    entity: str | None = None,
    project: str = "avmae",
    name: str = "avmae",
    output: str | Path = "wandb_dashboard.json",
) -> tuple[str | None, str]:
    """Create the dashboard where there is a W&B server; else write down what it would show.

    Args:
        sections: panels by the section's name; see `conf/dashboard.yaml`.
        entity: W&B user or team; None for the default one.
        project: whose runs are shown.
        name: of the dashboard.
        output: JSON file that describes the dashboard where no server can be reached.

    Returns:
        The dashboard's address and "", or None and why no server can be used.

    Raises:
        InputError: a panel is wrong, a package is missing, the server refuses, or the file cannot be written.
    """
    from avmae.viewing.workspace import check, create, unreachable

    check(sections)
    reason = unreachable()
    if reason is None:
        return create(sections, entity, project, name), ""
    content = {"entity": entity, "project": project, "name": name, "sections": sections}
    write_json(Path(output).expanduser(), content)
    return None, reason


@command("dashboard")
def main(config: dict[str, Any]) -> None:
    """Create the dashboard, and print where it is."""
    url, reason = dashboard(**config)
    if url is not None:
        print(f"created {url}")
    else:
        output = Path(config["output"]).expanduser()
        print(f"{reason}; wrote {output}, which describes the dashboard: run this again to create it")


if __name__ == "__main__":
    main()
