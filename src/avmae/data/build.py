"""Settings to data: which sources there are, and what each of them takes."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec
from avmae.data.datamodule import ClipDataModule, Loading
from avmae.data.embedded.avdigits import write_avdigits
from avmae.data.embedded.duets import write_duets
from avmae.data.embedded.synthetic import write_synthetic
from avmae.data.sources.csv import read_csv
from avmae.data.sources.folder import read_folder
from avmae.data.sources.shards import read_packed
from avmae.data.sources.ucf101 import read_ucf101
from avmae.data.splits import Splits
from avmae.errors import InputError
from avmae.runs.settings import refuse_wrong

Source = Callable[..., Splits]


def read_embedded(
    write: Callable[..., None],
    root: str,
    groups: int,
    clips_per_group: int,
    classes: int,
    fold: int = 1,
    val_groups: int = 2,
    workers: int = 2,
) -> Splits:
    """A data set of our own in UCF101's format, written at first use by `write`; see it and `read_ucf101`."""
    write(Path(root), groups=groups, clips_per_group=clips_per_group, classes=classes, workers=max(1, workers))
    return read_ucf101(root, fold, val_groups)


EMBEDDED: dict[str, Source] = {
    "synthetic": partial(read_embedded, write_synthetic),
    "avdigits": partial(read_embedded, write_avdigits),
    "duets": partial(read_embedded, write_duets),
}
SOURCES = EMBEDDED | {"ucf101": read_ucf101, "csv": read_csv, "folder": read_folder, "shards": read_packed}
"""Functions that return the clips of a data set, by the name that `data.source` gives them."""

FORMER_NAMES = {
    f"avmae.data.datamodule.{name}DataModule": name.lower()
    for name in ("UCF101", "CSV", "Folder", "Shards", "Synthetic", "AVDigits")
}
"""Sources by the `_target_` that older checkpoints and configs name."""


def build_data(
    settings: Mapping[str, Any], clip: ClipSpec, audio: bool = True, augment: AugmentSpec | None = None, seed: int = 0
) -> ClipDataModule:
    """Read the lists of the data set that settings describe.

    Settings are `source`, one of `SOURCES` or a function of the user's own as PACKAGE.MODULE:FUNCTION, what that
    function takes, and what `Loading` takes; for the rest see `ClipDataModule`.

    Raises:
        InputError: a key is unknown, missing or of the wrong type, or the data set cannot be read.
    """
    settings = by_source(settings)
    read = find_source(settings.pop("source", None))
    taken, loading = signature(read).parameters, signature(Loading).parameters
    settings = {key: value for key, value in settings.items() if key in taken or key in loading or value is not None}
    refuse_wrong("data", settings, {**taken, **loading})
    for key, parameter in taken.items():
        if parameter.default is Parameter.empty and settings.get(key) is None:
            raise InputError(f"data.{key} must be given")
    how = Loading(**{key: settings[key] for key in loading if key in settings})
    clips = read(**{key: settings[key] for key in taken if key in settings})
    return ClipDataModule(clips, clip, how, audio, augment, seed)


def by_source(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that name their `source`, also where those of an older version name a `_target_`."""
    own = dict(settings)
    target = own.pop("_target_", None)
    return own if target is None else own | {"source": FORMER_NAMES.get(target, target)}


def find_source(name: str | None) -> Source:
    """The function of a name: one of `SOURCES`, or PACKAGE.MODULE:FUNCTION, which is imported.

    Raises:
        InputError: there is none.
    """
    if not name:
        raise InputError("data: choose a kind, such as data=ucf101")
    if name in SOURCES:
        return SOURCES[name]
    module, _, function = str(name).partition(":")
    if not function:
        raise InputError(
            f"data.source={name} does not exist; there are {', '.join(SOURCES)}, and functions of your own that return "
            "avmae.data.splits.Splits, as PACKAGE.MODULE:FUNCTION"
        )
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"data.source={name} cannot be imported: {error}") from error


def keys_of(name: str | None) -> Collection[str]:
    """What data of a source can be told, besides their source."""
    return {*signature(find_source(name)).parameters, *signature(Loading).parameters}
