"""Models on the Hugging Face Hub: safetensors and a config of plain data; nothing else is read, nothing unpickled."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avmae.errors import InputError

FILES = ("config.json", "model.safetensors")
PROCESSOR = "preprocessor_config.json"
CARD = "README.md"
REFERENCE = re.compile(r"hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def on_hub(path: str | Path) -> bool:
    """Whether what is given as a checkpoint's path is ``hf://ORG/NAME`` or ``hf://ORG/NAME@REVISION``."""
    return str(path).startswith("hf:/")


def fetch(reference: str | Path) -> Path:
    """Download the weights and the config of a repository; what lies in the Hub's cache is not fetched again.

    ``HF_ENDPOINT`` names another server than huggingface.co.

    Returns:
        The folder, for `avmae.models.weights.read_checkpoint`.

    Raises:
        InputError: the repository, its revision or one of the files is missing or not to be read, the server cannot be
            reached, or the weights are not safetensors.
    """
    found = REFERENCE.fullmatch(str(reference))
    if not found:
        raise InputError(f"{reference} must be hf://ORG/NAME or hf://ORG/NAME@REVISION")
    hub, revision, file = _library(str(reference)), found["revision"], Path()
    for name in FILES:
        with _explained(f"{reference}: {name}"):
            file = Path(hub.hf_hub_download(found["repository"], name, revision=revision, endpoint=_endpoint()))
        # Of the same commit, also if somebody pushes meanwhile.
        revision = file.parent.name
    with file.open("rb") as stream:
        head = stream.read(9)
    if head[8:] != b"{":
        raise InputError(
            f"{reference}: model.safetensors is no safetensors file; avmae reads nothing else from the Hub"
        )
    return file.parent


def push(folder: Path, repository: str) -> str:
    """Upload a folder's model and card to a repository, which is made if there is none; returns its address.

    Raises:
        InputError: nobody is logged in, or may not write there; the server cannot be reached; the name cannot be.
    """
    api = _library(f"push={repository}").HfApi(endpoint=_endpoint())
    with _explained(f"push={repository}"):
        api.whoami()
        address = str(api.create_repo(repository, exist_ok=True))
        what = {"allow_patterns": [*FILES, PROCESSOR, CARD], "commit_message": "Upload a model of avmae"}
        api.upload_folder(repo_id=repository, folder_path=folder, **what)
    return address


def _endpoint() -> str | None:
    # The library reads it once, when it is imported.
    return os.environ.get("HF_ENDPOINT") or None


def _library(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError(f"{what} needs huggingface_hub: pip install 'avmae[hub]'") from error
    return huggingface_hub


@contextmanager
def _explained(what: str) -> Iterator[None]:
    import httpx
    from huggingface_hub import errors

    login = "log in with: hf auth login, or set HF_TOKEN"
    # Those that others are kinds of come last.
    reasons: dict[type[Exception], str] = {
        errors.LocalTokenNotFoundError: f"{what}: nobody is logged in; {login}",
        errors.GatedRepoError: f"{what}: its owners ask for access first; ask on its page, then {login}",
        errors.RevisionNotFoundError: f"{what}: the repository has no such revision",
        errors.RepositoryNotFoundError: (
            f"{what}: there is no such repository, or it is private: check its name, or {login}"
        ),
        errors.LocalEntryNotFoundError: f"{what}: the server cannot be reached, and the file is not in the cache",
        errors.EntryNotFoundError: (
            f"{what} is not in the repository; avmae reads {' and '.join(FILES)}, nothing pickled"
        ),
    }
    try:
        yield
    except tuple(reasons) as error:
        raise InputError(next(text for kind, text in reasons.items() if isinstance(error, kind))) from error
    except errors.HFValidationError as error:
        raise InputError(f"{what}: {str(error).splitlines()[0]}") from error
    except errors.HfHubHTTPError as error:
        refused = error.response is not None and error.response.status_code in (401, 403)
        raise InputError(f"{what}: {f'not allowed; {login}' if refused else str(error).splitlines()[0]}") from error
    except (httpx.HTTPError, OSError) as error:
        raise InputError(f"{what}: the server cannot be reached ({error})") from error
