"""avmae learns video representations from video and audio."""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avmae.clip import ClipSpec
    from avmae.data.read import read_clip
    from avmae.models.autoencoder import MaskedAutoencoder
    from avmae.models.classifier import Classifier
    from avmae.models.create import create_model, list_models
    from avmae.models.weights import load_model


def show_error(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """Python's `sys.excepthook` for commands: Ctrl-C is one line."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# So Python calls a program that is not found yet: a command starts, and Ctrl-C may come before its imports are done.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = show_error

try:
    __version__ = version("avmae")
except PackageNotFoundError:  # the source folder is on the path, but not installed
    __version__ = "unknown"

__all__ = [
    "Classifier",
    "ClipSpec",
    "MaskedAutoencoder",
    "__version__",
    "create_model",
    "list_models",
    "load_model",
    "read_clip",
]

_PLACES = {
    "Classifier": "avmae.models.classifier",
    "ClipSpec": "avmae.clip",
    "MaskedAutoencoder": "avmae.models.autoencoder",
    "create_model": "avmae.models.create",
    "list_models": "avmae.models.create",
    "load_model": "avmae.models.weights",
    "read_clip": "avmae.data.read",
}


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import; `import avmae` should not.
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'avmae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
