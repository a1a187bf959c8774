"""avmae learns video representations from video and audio."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avmae.data.read import read_clip
    from avmae.models.weights import load_model


def _show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


# So Python calls a program that is not found yet: a command starts, and Ctrl-C may come before its imports are done.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _show

try:
    __version__ = version("avmae")
except PackageNotFoundError:  # the source folder is on the path, but not installed
    __version__ = "unknown"

__all__ = ["__version__", "load_model", "read_clip"]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import; `import avmae` should not.
    if name == "load_model":
        from avmae.models.weights import load_model

        return load_model
    if name == "read_clip":
        from avmae.data.read import read_clip

        return read_clip
    raise AttributeError(f"module 'avmae' has no attribute '{name}'")
