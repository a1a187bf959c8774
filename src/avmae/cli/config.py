"""Settings: composed by Hydra, plain data from here on; what is missing, unknown or of the wrong kind is refused."""

import dataclasses
import errno
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from avmae.data.paths import PATHS
from avmae.errors import InputError
from avmae.runs.environment import record_environment, started_in
from avmae.runs.folder import settle_run
from avmae.runs.launch import first_process, on_first_process

CONF = str(Path(__file__).parents[1] / "conf")
GLOBAL = "# @package _global_\n"
SHARED = ("fold", "val_groups", "batch_size", "workers", "segments", "crops", "timeout")
"""Settings of data that say the same of any kind of them."""
SAME_KIND = ("val_share", "only", "train_share")
Spec = TypeVar("Spec")


def settings(cfg: DictConfig, config_name: str) -> dict[str, Any]:
    """The plain config of a command; of a training with its folder, which is made, and with what it resumes.

    Raises:
        InputError: a key is unknown, missing or no number, or see `avmae.runs.folder.settle_run`.
    """
    file = Path(CONF, f"{config_name}.yaml")
    own: Any = OmegaConf.load(file)
    groups = {str(key) for default in own.get("defaults", []) if isinstance(default, DictConfig) for key in default}
    if unknown := sorted(set(map(str, cfg)) - set(own) - {name.removeprefix("optional ") for name in groups}):
        raise InputError(f"unknown key {unknown[0]}; the keys are {', '.join(sorted(map(str, cfg)))}")
    config, files = plain(cfg), {file: ""}
    for group, choice in HydraConfig.get().runtime.choices.items():
        # A user's own may lie elsewhere.
        if not group.startswith("hydra/") and (file := Path(CONF, group, f"{choice}.yaml")).is_file():
            files[file] = f"{group}."
    refuse_words(config, files)
    if "run_dir" not in config:
        return config
    _settle(cfg)
    return plain(cfg)


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
    """A config as plain dicts and lists, every interpolation resolved; names what is missing.

    Raises:
        InputError: see `refuse_missing`.
    """
    refuse_missing(cfg)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def refuse_missing(cfg: DictConfig) -> None:
    """Refuse a config in which a mandatory value was not given: one that is ``???``, or is named by ``requires``.

    A recipe names a key there whose default is null, for OmegaConf keeps null where ``???`` is merged over it. A run
    that is resumed has what it began with.

    Raises:
        InputError: it names all that is missing.
    """
    missing = OmegaConf.missing_keys(cfg)
    if OmegaConf.select(cfg, "resume") is None:
        missing |= {key for key in OmegaConf.select(cfg, "requires") or () if OmegaConf.select(cfg, key) is None}
    if missing:
        names = sorted(missing)
        given = " ".join(f"{name}=VALUE" for name in names)
        raise InputError(f"{' and '.join(names)} must be given: add {given} to the command")


def refuse_words(config: Mapping[str, Any], files: Mapping[Path, str]) -> None:
    """Refuse a text for a setting that is a number in the config files.

    Args:
        config: of a command, resolved.
        files: the config files that it is made of, and below which key each one's settings are.

    Raises:
        InputError: there is one; names the key.
    """
    defaults = [pair for file, key in files.items() for pair in _defaults(file, key)]
    words = {key for key, value in defaults if isinstance(value, str) and value != "???"}
    numbers = {key for key, value in defaults if isinstance(value, int | float) and not isinstance(value, bool)} - words
    for key, value in _flat(config, ""):
        if key in numbers and isinstance(value, str):
            raise InputError(f"{key} must be a number, not '{value}'")


def _defaults(file: Path, prefix: str) -> Iterator[tuple[str, Any]]:
    """What a config file, and the files of its folder that it starts from, give its settings."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    for base in content.pop("defaults", []) if prefix else []:
        if isinstance(base, str) and base != "_self_":
            yield from _defaults(file.with_stem(base.partition("@")[0]), prefix)
    yield from _flat(content, "" if file.read_text(encoding="utf-8").startswith(GLOBAL) else prefix)


def _flat(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_writable(file: Path, key: str = "output") -> None:
    """Find out whether a file can be written, before the hours that it takes to have something to write.

    Raises:
        InputError: it cannot.
    """
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


def spec(cls: type[Spec], key: str, values: Mapping[str, Any]) -> Spec:
    """Build a settings class from a config node.

    Raises:
        InputError: a key that the class does not have.
    """
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"unknown key {key}.{unknown[0]}; {key} has {', '.join(names)}")
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        value, kinds = values.get(field.name), {*get_args(field.type)} or {field.type}
        if kinds <= {int, float, NoneType} and isinstance(value, str):
            raise InputError(f"{key}.{field.name} must be a number, not '{value}'")
        if kinds <= {int, NoneType} and isinstance(value, float):
            raise InputError(f"{key}.{field.name} must be a whole number, not {value}")
    return cls(**values)


def instantiate(node: Mapping[str, Any], **how: Any) -> Any:
    """Hydra's, of which the user gets the constructor's own message alone.

    Raises:
        InputError: the constructor failed.
    """
    try:
        return hydra.utils.instantiate(node, **how)
    except InstantiationException as error:
        message = str(error.__cause__ or error).splitlines()[0]
        key = re.search(r"full_key: (\S+)", str(error))
        own = isinstance(error.__cause__, InputError)
        raise InputError(f"{key[1]}: {message}" if key and not own else message) from error


def construct(key: str, config: Mapping[str, Any], **objects: Any) -> Any:
    """Build what a config node's ``_target_`` names, from its settings and from objects made elsewhere.

    Raises:
        InputError: a key that the target does not take.
    """
    if not config.get("_target_"):
        raise InputError(f"{key}: choose a kind, as {key}=ucf101")
    # Partial, or Hydra would turn settings objects into configs.
    target = instantiate(config, _partial_=True, _convert_="all")
    try:
        return target(**objects)
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise InputError(f"unknown key in {key}: {str(error).split('()')[-1].strip()}") from error
        if missing := re.search(r"missing \d+ required positional arguments?: '(\w+)'", str(error)):
            raise InputError(f"{key}.{missing[1]} must be given") from error
        raise
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{key}: {str(error).splitlines()[0]}") from error


def precision(trainer: dict[str, Any]) -> str:
    """Precision by device: bf16 autocast on GPUs that compute in it (not on V100 and T4, which emulate it), else full.

    Raises:
        InputError: half precision is asked for.
    """
    import torch

    if str(trainer["precision"]).startswith("16"):
        raise InputError(
            f"trainer.precision={trainer['precision']} needs a scaled loss, with which gradients are neither measured "
            "nor clipped rightly here; choose bf16-mixed or 32-true"
        )
    if trainer["precision"] != "auto":
        return trainer["precision"]
    on_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def chosen_data(settings: dict[str, Any], data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `evaluation_data` takes, where the command line may choose another kind of data by `data=KIND`.

    Another kind brings its own defaults, but which fold is tested, and how clips are read and scored, is as in the
    checkpoint unless the command line names it; of the same kind also which classes and which share of them.

    Args:
        settings: the checkpoint's config.
        data: the command's.
    """
    job = HydraConfig.get()
    if job.runtime.choices["data"] == "checkpoint":
        return settings, data
    typed = {word.lstrip("+").split("=")[0] for word in job.overrides.task}
    own, target = settings.get("data", {}), data["_target_"]
    kept = SHARED + (SAME_KIND if target == own.get("_target_") else ())
    taken = {key: own[key] for key in kept if key in own and key in data and f"data.{key}" not in typed}
    return {**settings, "data": {**data, **taken}}, {"_target_": target}


def evaluation_data(
    settings: Mapping[str, Any], given: Mapping[str, Any], modalities: Collection[str], ckpt: str | Path | None = None
) -> Any:
    """The data module of a checkpoint, changed by what is given; UCF101 where the checkpoint is another project's.

    Another data module than the checkpoint's reads as much at once and scores as many views, of other projects'
    checkpoints 5 segments x 3 crops.

    Args:
        settings: the checkpoint's config.
        given: the command's `data`; None keeps what the checkpoint says.
        modalities: of the model.
        ckpt: the checkpoint's path, to say where it was trained if its data are not found.
    """
    from avmae.clip import ClipSpec

    given = {key: value for key, value in given.items() if value is not None}
    data = settings.get("data", {"_target_": "avmae.data.datamodule.UCF101DataModule", "segments": 5, "crops": 3})
    if given.get("_target_", data.get("_target_")) != data.get("_target_"):
        data = {key: data[key] for key in ("segments", "crops", "batch_size", "workers") if key in data}
    refuse_foreign_code(data | {k: v for k, v in given.items() if k == "_target_"}, trusted=given.get("_target_"))
    if "root" not in data | given and "train" not in data | given and "test" not in given:
        raise InputError("the checkpoint names no data; give data.root=DIR, the folder of UCF101, or data=KIND as well")
    if "root" in given and "://" not in str(given["root"]) and not Path(given["root"]).expanduser().is_dir():
        raise InputError(f"data.root={given['root']} is not a folder; give the data set's")
    if data.get("manifest") and not Path(data["manifest"]).expanduser().is_file():
        # It is where training ran; all that is lost is which clips of train and val cannot be read.
        data = data | {"manifest": None}
    refuse_lost_data({key: value for key, value in data.items() if key not in given}, ckpt)
    clip = ClipSpec(**settings["clip"])
    return construct("data", data | given, clip=clip, audio="audio" in modalities, seed=settings["seed"])


def refuse_lost_data(data: Mapping[str, Any], ckpt: str | Path | None) -> None:
    """Say where the data of a checkpoint may be found, if they are not where it says.

    Args:
        data: the checkpoint's, but for what is given anew.
        ckpt: its path.

    Raises:
        InputError: there is nothing at one of its paths.
    """
    # The embedded data sets are written where they are missing.
    paths = {key: data.get(key) for key in PATHS if not (key == "root" and "groups" in data)}
    for key, path in paths.items():
        if not isinstance(path, str) or "://" in path or Path(path).expanduser().exists():
            continue
        folder = None if ckpt is None else started_in(ckpt)
        hint = f"; training was started in {folder}" if folder and not Path(path).is_absolute() else ""
        there = os.path.join(folder or "", path)
        raise InputError(
            f"the checkpoint's data.{key}={path} is not there{hint}; give data.{key}="
            f"{there if os.path.exists(there) else 'PATH'}"
        )


def refuse_foreign_code(data: Mapping[str, Any], trusted: str | None = None) -> None:
    """Keep a checkpoint's config from naming what is to be called: only avmae's own data modules, with plain values.

    Args:
        data: the checkpoint's.
        trusted: another data module that the user named.

    Raises:
        InputError: it names anything else.
    """
    target = data.get("_target_")
    nested = [value for key, value in data.items() if key != "_target_"]
    special = [key for key in data if str(key).startswith("_") and key != "_target_"]
    for value in nested:
        # What is found is appended to the list that is walked.
        if isinstance(value, Mapping):
            special += [key for key in value if str(key).startswith("_")]
            nested += value.values()
        elif isinstance(value, list):
            nested += value
    own = re.fullmatch(r"avmae\.data\.datamodule\.\w+DataModule", str(target))
    if not (own or target == trusted is not None) or special:
        raise InputError(
            f"the checkpoint asks to call {target} with {', '.join(map(str, special)) or 'plain values'} to read its "
            "data, which is no data module of avmae's; if you trust it, set data._target_ yourself"
        )
