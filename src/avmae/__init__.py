"""avmae learns video representations from pictures and sound."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avmae.data.read import read_clip
    from avmae.models.weights import load_model

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
