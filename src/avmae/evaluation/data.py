"""The data that a checkpoint is tested on: those that it was trained on, changed by what is asked for."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from avmae.clip import ClipSpec
from avmae.data.build import EMBEDDED, SOURCES, build_data, by_source, keys_of
from avmae.data.datamodule import ClipDataModule
from avmae.data.paths import OR_PATHS, PATHS
from avmae.errors import InputError
from avmae.runs.environment import started_in

SHARED = ("fold", "val_groups", "batch_size", "workers", "prefetch", "segments", "crops", "timeout")
"""Settings that mean the same for any kind of data that has them."""
SAME_KIND = ("val_share", "only", "train_share")


def evaluation_data(
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    modalities: Collection[str],
    ckpt: str | Path | None = None,
    typed: Collection[str] | None = None,
    test_only: bool = False,
) -> ClipDataModule:
    """The data of a checkpoint, changed by what is given; UCF101 where the checkpoint is another project's.

    Another kind of data than the checkpoint's brings its own settings, but which fold is tested, and how clips are read
    and scored, is as in the checkpoint: of other projects' checkpoints 5 segments x 3 crops.

    Args:
        settings: the checkpoint's config.
        given: settings of data; None keeps what the checkpoint says.
        modalities: that are read.
        ckpt: the checkpoint's path, to say where it was trained if its data are not found.
        typed: which of the given settings somebody chose, where the others are defaults of a kind of data that was
            named as a whole (``data=KIND``); None if they all are.
        test_only: pass over the lists that the checkpoint was trained on, which may be elsewhere; classes are the
            checkpoint's then, for a list for the test need not have all of them.

    Raises:
        InputError: the data are not there, cannot be read, or a checkpoint names a function that is not ours.
    """
    given = by_source({key: value for key, value in given.items() if value is not None})
    named_as_a_whole, typed = typed is not None, given.keys() if typed is None else typed
    own = by_source(settings.get("data", {"source": "ucf101"}))
    source = given.get("source", own.get("source"))
    refuse_foreign_code(own, trusted="source" in given)
    same = source == own.get("source")
    kept = keys_of(source)
    if named_as_a_whole or not same:
        kept = {*SHARED, *(SAME_KIND if same else ())} & {*kept}
    data = given | {key: own[key] for key in kept if key in own and key not in typed} | {"source": source}
    root = str(given.get("root", ""))
    if not named_as_a_whole and root and "://" not in root and not Path(root).expanduser().is_dir():
        raise InputError(f"data.root={root} is not a folder; give the data set's")
    if "data" not in settings and data.keys().isdisjoint(PATHS):
        raise InputError("the checkpoint names no data; give data.root=DIR, the folder of UCF101, or data=KIND as well")
    if test_only and source == "csv":
        data = {key: value for key, value in data.items() if key not in ("train", "val")}
        if "class_names" in settings and not data.get("classes"):
            data["classes"] = settings["class_names"]
    inherited = {key: value for key, value in data.items() if key not in given}
    if "manifest" in inherited and not Path(inherited["manifest"] or "").expanduser().is_file():
        # It is where training ran; all that is lost is which clips of train and val cannot be read.
        data["manifest"] = None
    # The embedded data sets are written where they are missing.
    for key in OR_PATHS if source not in EMBEDDED else ():
        refuse_lost(key, inherited.get(key), ckpt)
    return build_data(data, ClipSpec(**settings["clip"]), "audio" in modalities, seed=settings["seed"])


def refuse_lost(key: str, path: Any, ckpt: str | Path | None) -> None:
    """Raise an InputError unless there is something at a path of the checkpoint's; it says where that may be."""
    if not isinstance(path, str) or "://" in path or Path(path).expanduser().exists():
        return
    folder = None if ckpt is None else started_in(ckpt)
    hint = f"; training was started in {folder}" if folder and not Path(path).is_absolute() else ""
    there = os.path.join(folder or "", path)
    raise InputError(
        f"the checkpoint's data.{key}={path} is not there{hint}; give data.{key}="
        f"{there if os.path.exists(there) else 'PATH'}"
    )


def refuse_foreign_code(data: Mapping[str, Any], trusted: bool = False) -> None:
    """Keep a checkpoint's config from naming what is imported: only sources of ours, with plain values.

    Args:
        data: the checkpoint's, as `by_source` returns them.
        trusted: the user named the source.

    Raises:
        InputError: it names anything else.
    """
    source = data.get("source")
    special = [key for key, value in data.items() if str(key).startswith("_") or not _is_plain(value)]
    if special or not (source in SOURCES or trusted):
        raise InputError(
            f"the checkpoint asks to call {source} with {', '.join(map(str, special)) or 'plain values'} to read its "
            "data, which is no source of avmae's; if you trust it, set data.source yourself"
        )


def _is_plain(value: Any) -> bool:
    """Whether it is a text, a number, None, or a list of these."""
    return (
        all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, str | int | float | None)
    )
