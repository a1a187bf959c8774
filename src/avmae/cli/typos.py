"""What was probably meant by a command line that Hydra does not understand."""

import difflib
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from avmae.errors import InputError
from avmae.runs.history import flat
from avmae.runs.settings import CONF, choices, did_you_mean

MULTIRUN = {"-m", "--multirun"}


def refuse_typos(config_name: str, arguments: Sequence[str]) -> None:
    """Compose a command line before Hydra does, for messages that say what to type instead.

    Args:
        config_name: of the command.
        arguments: as in ``sys.argv``. What a multirun sweeps over is left to Hydra, and so is all with other flags,
            which may add config files of the user's own.

    Raises:
        InputError: a key or choice does not exist, or a value has to be quoted.
    """
    flags, words = ([a for a in arguments if a.startswith("-") == flag] for flag in (True, False))
    if not MULTIRUN.issuperset(flags):
        return
    try:
        if flags:
            parsed = OverridesParser.create().parse_overrides(words)
            words = [override.input_line for override in parsed if not override.is_sweep_override()]
        with initialize_config_dir(CONF, version_base="1.3"):
            compose(config_name, words)
    except HydraException as error:
        raise InputError(_explained(error, config_name, words)) from error


def _explained(error: HydraException, config_name: str, words: Sequence[str]) -> str:
    message = str(error)
    if isinstance(error, OverrideParseException) or message.startswith("Ambiguous value"):
        return _quoted(words) or message
    found = re.search(r"Could not find '([^']+)/([^'/]+)'", message)
    if found and (known := choices(found[1])):
        group, choice = found.groups()
        return f"unknown choice {group}={choice}; {did_you_mean(choice, known)}there are {', '.join(known)}"
    found = re.match(r"Could not override '([^']+)'", message)
    if found and isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError):
        key = found[1]
        near = nearest(key, _keys(config_name))
        return f"unknown key {key}; " + (f"did you mean {near}?" if near else "-h shows all keys")
    return message


def _quoted(words: Sequence[str]) -> str:
    """How the first value can be typed that has what Hydra's grammar reads as something else."""
    for word in words:
        key, equals, value = word.partition("=")
        if equals and value[:1] not in ("'", '"', "[", "{") and re.search(r"[^\w/.+$%*@?|:\\-]|[^\x00-\x7f]", value):
            inner = value.replace("\\", "\\\\").replace("'", "\\'")
            text = f"{key}='{inner}'"
            shown = shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'
            return f"{word} has characters with a meaning of their own; quote it: {shown}"
    return ""


def _keys(config_name: str) -> list[str]:
    """All that can be typed before a ``=``: keys of the command's settings, and groups."""
    with initialize_config_dir(CONF, version_base="1.3"):
        content = OmegaConf.to_container(compose(config_name), resolve=False)
    assert isinstance(content, dict)
    settings = {str(key): value for key, value in content.items()}
    return [*flat(settings), *(group for group in settings if Path(CONF, group).is_dir())]


def nearest(key: str, known: Collection[str]) -> str | None:
    """The one of the dotted keys that was probably meant.

    A key that is right but for its section, as ``batch_size`` for ``data.batch_size``, is the nearest; then come
    others by how many letters differ.
    """
    last = key.rpartition(".")[2]
    ends = [name for name in known if name.rpartition(".")[2] == last]
    if len(ends) == 1 or (ends and "." not in key):
        return ends[0]
    if near := difflib.get_close_matches(key, known, 1, cutoff=0.7):
        return near[0]
    by_end = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(last, by_end, 1, cutoff=0.75)
    return by_end[near[0]] if near else None
