"""Settings: composed by Hydra, plain data from here on; what is missing, unknown or of the wrong kind is refused."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from avmae.clip import ClipSpec
from avmae.errors import InputError, printable
from avmae.runs.environment import record_environment
from avmae.runs.folder import settle_run
from avmae.runs.history import flat
from avmae.runs.launch import first_process, on_first_process
from avmae.runs.settings import CONF, arguments, did_you_mean

TAKEN = ("model", "size", "clip")
"""Groups of settings that fine-tuning takes from the checkpoint that it starts from."""
RECIPE = ("model.drop_path", "model.checkpointing", "model.loss_weights")
"""Settings in these that are how it trains, not what the model is."""
GLOBAL = "# @package _global_\n"


def configs() -> AbstractContextManager[Any]:
    """A context in which Hydra composes our configs; a command is in one already."""
    return nullcontext() if GlobalHydra().is_initialized() else initialize_config_dir(CONF, version_base="1.3")


def require_test_clips(overrides: Sequence[str]) -> None:
    """Refuse a training's data without test clips; what is written at first use is there before two trainings begin."""
    from avmae.data.build import build_data

    with configs():
        build_data(plain(compose("train", list(overrides)))["data"], ClipSpec()).require_test()


def composed(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The `settings` of a command that is called from Python, by what its command line would be."""
    with configs():
        cfg = compose(config_name, list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with read_write(cfg), open_dict(cfg):
            del cfg["hydra"]
        return settings(cfg, config_name)


def settings(cfg: DictConfig, config_name: str) -> dict[str, Any]:
    """The plain config of a command; of a training with its folder, which is made, and with what it resumes.

    Raises:
        InputError: a key is unknown, missing or no number, or see `avmae.runs.folder.settle_run`.
    """
    own: Any = OmegaConf.load(Path(CONF, f"{config_name}.yaml"))
    groups = {str(key) for default in own.get("defaults", []) if isinstance(default, DictConfig) for key in default}
    if unknown := sorted(set(map(str, cfg)) - set(own) - {name.removeprefix("optional ") for name in groups}):
        hint = did_you_mean(unknown[0], set(own) - {unknown[0]})
        raise InputError(f"unknown key {unknown[0]}; {hint}the keys are {', '.join(sorted(map(str, cfg)))}")
    if "run_dir" in cfg:
        take_from_checkpoint(cfg, HydraConfig.get().overrides.task)
    config = plain(cfg)
    refuse_words(config, config_name, HydraConfig.get().runtime.choices)
    if "run_dir" not in config:
        return config
    _settle(cfg)
    return plain(cfg)


def take_from_checkpoint(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Give a classifier the model, size and clip of the checkpoint that it starts from; print what that changes.

    Args:
        cfg: of a training, changed in place. A resumed run may do without the file. Weights in others' layouts, which
            may be of one modality alone, change nothing.
        typed: overrides of the command line, which count more.

    Raises:
        InputError: the checkpoint cannot be read.
    """
    ckpt = OmegaConf.select(cfg, "ckpt")
    if not ckpt or cfg.task.name == "pretrain":
        return
    if OmegaConf.select(cfg, "resume") is not None and "://" not in ckpt and not Path(ckpt).expanduser().exists():
        return
    # Here, for the help of the commands need not load torch.
    from avmae.models.weights import read_checkpoint

    checkpoint = read_checkpoint(ckpt)
    if checkpoint.layout != "avmae":
        return
    keys = {text.lstrip("+~").partition("=")[0].partition("@")[0] for text in typed}
    then = flat({group: checkpoint.config[group] for group in TAKEN if group not in keys})
    now = flat(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False)))
    taken = [k for k, value in then.items() if k not in keys and not k.startswith(RECIPE) and now.get(k) != value]
    for key in taken:
        OmegaConf.update(cfg, key, then[key], force_add=True)
    if taken and first_process():
        print(f"as in {printable(ckpt)}: {arguments(then, now, taken)}", flush=True)


def _settle(cfg: DictConfig) -> None:
    """Fill in `run_dir` and `resume`; what was composed is left in the folder's `.hydra/`, as Hydra leaves it."""
    hydra = HydraConfig.instance().cfg
    assert hydra is not None
    swept = hydra.hydra.mode == RunMode.MULTIRUN
    given = hydra.hydra.runtime.output_dir if swept else cfg.run_dir
    run_dir, resume = on_first_process(lambda: settle_run(cfg.logs, cfg.name, cfg.resume, given, swept))
    with read_write(hydra.hydra):
        hydra.hydra.runtime.output_dir = run_dir
    if first_process():
        record_environment(run_dir, resume)
        Path(run_dir, ".hydra").mkdir(exist_ok=True)
        for name, content in {"config": cfg, "hydra": hydra, "overrides": hydra.hydra.overrides.task}.items():
            OmegaConf.save(content, Path(run_dir, ".hydra", f"{name}.yaml"))
    cfg.run_dir, cfg.resume = run_dir, resume


def plain(cfg: DictConfig) -> dict[str, Any]:
    """A config as plain dicts and lists, every interpolation resolved; see `refuse_missing`."""
    refuse_missing(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse a config in which a mandatory value was not given: one that is ``???``, or is named by ``requires``.

    A recipe names a key there whose default is null, for OmegaConf keeps null where ``???`` is merged over it. A run
    that is resumed has what it began with.
    """
    missing = OmegaConf.missing_keys(cfg)
    if OmegaConf.select(cfg, "resume") is None:
        missing |= {key for key in OmegaConf.select(cfg, "requires") or () if OmegaConf.select(cfg, key) is None}
    if missing:
        names = sorted(missing)
        given = " ".join(f"{name}=VALUE" for name in names)
        raise InputError(f"{' and '.join(names)} must be given: add {given} to the command")


def refuse_words(config: Mapping[str, Any], config_name: str, choices: Mapping[str, str]) -> None:
    """Refuse a text for a setting that is a number in the config files."""
    numbers, words = set[str](), set[str]()
    for text, _, prefix in config_files(config_name, choices):
        content: Any = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
        for key, value in flat(content, prefix).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers.add(key)
            elif isinstance(value, str) and value != "???":
                words.add(key)
    for key, value in flat(config).items():
        if key in numbers - words and isinstance(value, str):
            raise InputError(f"{key} must be a number, not '{value}'")


def config_files(config_name: str, choices: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Files that a command's config is made of, by its `choices`, the general first; a user's own are left out.

    Yields:
        Their text, their group (empty for the command's own), and what comes before their keys.
    """
    yield Path(CONF, f"{config_name}.yaml").read_text(encoding="utf-8"), "", ""
    for group, choice in choices.items():
        if not group.startswith("hydra/"):
            yield from _with_bases(group, choice)


def _with_bases(group: str, name: str) -> Iterator[tuple[str, str, str]]:
    file = Path(CONF, group, f"{name}.yaml")
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    content: Any = OmegaConf.create(text)
    for base in content.get("defaults", []):
        # A dict overrides what another group starts from.
        if isinstance(base, str) and base != "_self_":
            yield from _with_bases(group, base.partition("@")[0])
    yield text.removeprefix(GLOBAL), group, "" if text.startswith(GLOBAL) else f"{group}."


def check_writable(file: Path, key: str = "output") -> None:
    """Refuse a file that cannot be written, before the hours that it takes to have something to write."""
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whatever forbids it: rights, a read-only disk, a folder that is none.
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix="."):
            pass
        if file.exists():
            file.open("ab").close()
    except OSError as error:
        raise InputError(f"{key}={file} cannot be written: {error.strerror}; choose another") from error


def instantiate(node: Mapping[str, Any]) -> Any:
    """Hydra's, of which the user gets the constructor's own message alone."""
    try:
        return hydra.utils.instantiate(node)
    except InstantiationException as error:
        message = str(error.__cause__ or error).splitlines()[0]
        key = re.search(r"full_key: (\S+)", str(error))
        own = isinstance(error.__cause__, InputError)
        raise InputError(f"{key[1]}: {message}" if key and not own else message) from error


def check_counts(config: Mapping[str, Any], *keys: str) -> None:
    """Raise an InputError unless settings are whole numbers from 1, or null where the config file says so."""
    for key in keys:
        if config[key] is not None and (not isinstance(config[key], int) or config[key] < 1):
            raise InputError(f"{key}={config[key]} must be a whole number from 1")


def chosen_data(data: dict[str, Any]) -> tuple[dict[str, Any], set[str] | None]:
    """What `evaluation_data` takes as `given` and `typed`: the command line may choose a kind by `data=KIND`."""
    job = HydraConfig.get()
    if job.runtime.choices["data"] == "checkpoint":
        return data, None
    return data, {word.lstrip("+").split("=")[0].removeprefix("data.") for word in job.overrides.task}


def data_overrides() -> list[str]:
    """What the command line says of data, for a training."""
    job = HydraConfig.get()
    return [f"data={job.runtime.choices['data']}", *(word for word in job.overrides.task if word.startswith("data."))]


def if_may_lack_audio(value: Any, modalities: Sequence[str], may_lack: Sequence[str]) -> Any:
    """A recipe's share of clips that lose their audio; 0 for systems without audio, or without a token in its place."""
    return value if "audio" in modalities and "audio" in may_lack else 0.0


OmegaConf.register_new_resolver("if_may_lack_audio", if_may_lack_audio, replace=True)
