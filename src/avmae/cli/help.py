"""The page that `-h` prints: what a command does, and its settings with what the config files say of them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from avmae.cli.config import config_files

LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:#\s*(?P<comment>.*))?$")
WIDEST = 44
"""Columns for a setting; longer ones push their comment away."""


def page(conf: str, name: str, overrides: list[str]) -> str:
    """Help of a command, its settings as they are with what else is on the command line.

    Args:
        conf: the folder of all config files.
        name: of the command's own file in it; what its `hydra.help.template` says comes first.
        overrides: of the command line.
    """
    with initialize_config_dir(conf, version_base="1.3"):
        config = compose(name, overrides, return_hydra_config=True)
    chosen = {group: choice for group, choice in config.hydra.runtime.choices.items() if "hydra" not in group}
    about = str(config.hydra.help.template).rstrip()
    values: Any = OmegaConf.to_container(config, resolve=False)
    del values["hydra"]

    comments: dict[str, str] = {}
    for text in config_files(name, {group: choice for group, choice in chosen.items() if group != "experiment"}):
        comments |= _comments(*text)
    lines = [about]
    if chosen:
        lines += ["", "Choices, as GROUP=CHOICE (* now):"]
        wide = max(map(len, chosen))
        for group, choice in sorted(chosen.items()):
            # What a checkpoint says is a choice for commands that have one.
            stems = {file.stem for file in Path(conf, group).glob("*.yaml")}
            names = sorted(stems - ({"checkpoint"} - {choice}))
            lines.append(f"  {group:<{wide}}  {', '.join(f'{n}*' if n == choice else n for n in names)}")
    lines += ["", "Settings, as KEY=VALUE:"]
    required = values.pop("requires", [])
    settings = list(_settings(values, ""))
    wide = min(WIDEST, max(len(f"{key}={value}") for key, value in settings))
    above = ""
    for key, value in settings:
        parent = key.rpartition(".")[0]
        if parent != above:
            lines.append("")
            if parent in comments:
                lines.append(f"  # {comments[parent]}")
        above = parent
        comment = "; ".join(
            filter(None, ["must be given" * (value == "???" or key in required), comments.get(key, "")])
        )
        lines.append(f"  {f'{key}={value}':<{wide}}  {comment}".rstrip())
    return "\n".join(lines)


def _settings(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Each setting as it can be typed; those of one section stay together, and what is not to be set is left out."""
    for nested in (False, True):
        for key, value in node.items():
            if key.startswith("_") or ("${run_dir}" in str(value) and not isinstance(value, dict)):
                continue
            if isinstance(value, dict) and value:
                if nested:
                    yield from _settings(value, f"{prefix}{key}.")
            elif not nested:
                yield f"{prefix}{key}", _typed(value)


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return "[...]" if any(isinstance(item, dict) for item in value) else f"[{','.join(map(_typed, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    if text.count("${") > 1:
        # Hydra's grammar has no nested interpolation.
        return "[...]"
    return f"'{text}'" if re.search(r"[=,\[\]]", text) and "${" not in text else text


def _comments(text: str, group: str, prefix: str) -> dict[str, str]:
    """What a config file says of itself and of its keys, by dotted key."""
    found: dict[str, str] = {}
    path: list[str] = []
    for line in text.splitlines():
        if match := LINE.match(line):
            path = [*path[: len(match["indent"]) // 2], match["key"]]
            if match["comment"]:
                found[prefix + ".".join(path)] = match["comment"].strip()
    if text.startswith("# ") and group:
        found[group] = text.splitlines()[0].removeprefix("# ")
    return found
