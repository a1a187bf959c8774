"""Commands and Python in README and the pages work as written, and what the pages quote of the code is there."""

import functools
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

import avmae.cli.config
import avmae.train
from avmae.__main__ import COMMANDS
from avmae.cli.config import composed
from avmae.training.build import read_specs

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ROOT / "README.md", ROOT / ".github/CONTRIBUTING.md"
PAGES = [README, CONTRIBUTING, *sorted((ROOT / "docs").rglob("*.md"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"].keys()

Page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Words of each command of a page: in blocks, and in the text those that are whole."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`\n]+)`", text):
        if re.match(r"(python -m avmae|python benchmarks/|python tests/|make )", span) and "..." not in span:
            words = shlex.split(span)
            # A name alone speaks of the command.
            yield [*words, "-h"] if words[:2] == ["python", "-m"] and len(words) == 3 else words


@Page
def test_every_command_is_one_that_works(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # The folder of a run that would be made, or resumed.
    monkeypatch.setattr(avmae.cli.config, "_settle", lambda cfg: None)
    for words in commands(page):
        try:
            check(words)
        except Exception as error:
            pytest.fail(f"{shlex.join(words)}\n{error}")
    assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def checkpoints_need_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avmae.cli.config, "take_from_checkpoint", lambda cfg, typed: None)


def check(words: list[str]) -> None:
    """Raise if a command would not be understood."""
    while words[0] in ("exec", "sudo"):
        words = words[1:]
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "avmae" and arguments:
        check_settings(*arguments)
    elif program == "torchrun":
        check(["python", *arguments[arguments.index("-m") :]])
    elif program == "python" and arguments[:1] == ["-m"]:
        module, name = arguments[1].partition(".")[::2]
        if module == "avmae" and name:
            check_settings(name, *arguments[2:])
        else:
            assert module in ("avmae", "pytest")
            assert all((ROOT / file).exists() for file in arguments[2:] if file != "-h")
    elif program == "python":
        text = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in text for option in arguments[1:] if re.match(r"--\w", option))
    elif program == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in arguments if not word.startswith("PYTHON=")} <= set(targets)
    elif program == "pip":
        (what,) = [word for word in arguments[1:] if word != "-e"]
        asked = re.fullmatch(r"(?:avmae|\.)(?:\[(.*)\])?", what)
        assert asked is not None
        assert set((asked[1] or "dev").split(",")) <= EXTRAS
    elif program == "wandb":
        assert arguments[0] == "agent" or (ROOT / arguments[1]).is_file()
    else:
        assert program in ("export", "source", "pre-commit"), "no test knows this program"


@functools.cache
def check_settings(name: str, *overrides: str) -> None:
    """Raise if a command of avmae does not take these settings, of a sweep the first of each."""
    assert name in COMMANDS
    if "-h" in overrides:
        return
    # Ray's launcher does not install beside the versions that are pinned here.
    settings = [o for o in overrides if not o.startswith("-") and o != "cluster=ray" and "launcher.ray" not in o]
    if "-m" in overrides:
        settings = [first_of_sweep(override) for override in settings]
    config = composed(name, settings)
    if name == "train":
        read_specs(config)


def first_of_sweep(override: str) -> str:
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    value = parsed.value()
    first = value.start if isinstance(value, IntervalSweep) else next(iter(parsed.sweep_string_iterator()))
    return f"{parsed.get_key_element()}={first}"


def test_the_python_of_the_readme_runs_as_it_is() -> None:
    (block,) = blocks(README, "python")
    names: dict = {}
    exec(block, names)
    assert names["features"].shape == (1, 1696, 192)
    assert "# (1, 1696, 192)" in block


@pytest.fixture
def folder(finetuned: Path, miniature: Path, tmp_path: Path) -> Path:
    """A folder with the files that the pages' Python names."""
    (clip, *_) = miniature.rglob("*.avi")
    for name in ("clip.mp4", "CLIP.avi"):
        (tmp_path / name).symlink_to(clip)
    for name in ("last.ckpt", "logs/demo/finetune/checkpoints/best.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(finetuned / "checkpoints/last.ckpt")
    row = '{"system": "avmae", "seed": 0, "degradation": "blur", "severity": 2, "metric": "top1", "value": 0.61'
    row += ', "subset": "sound", "start": "pretrained", "labels": 1.0}'
    (tmp_path / "study.json").write_text(f'{{"rows": [{row}]}}')
    return tmp_path


def test_the_python_of_the_pages_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*overrides: str) -> SimpleNamespace:
        """Understand the settings, and take no minutes."""
        check_settings("train", *overrides)
        return SimpleNamespace(run_dir=Path("logs"), metrics={"val/loss": 1.0})

    monkeypatch.chdir(folder)
    monkeypatch.setattr(avmae.cli.config, "_settle", lambda cfg: None)
    monkeypatch.setattr(avmae.train, "train", train)
    found = [(page, block) for page in PAGES if page != README for block in blocks(page, "python")]
    assert len(found) > 3
    for page, block in found:
        exec(compile(block, str(page), "exec"), {})


def test_every_message_that_is_explained_is_one_of_the_code() -> None:
    """Three dots stand for what varies; a comment marks what is not written in one piece, or by another library."""
    files = sorted((ROOT / "src/avmae").rglob("*.py"))
    source = "\n".join(re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8")) for file in files)
    text = (ROOT / "docs/howto/troubleshooting.md").read_text(encoding="utf-8")
    terms = [term for term in re.findall(r"^(.+)\n:   ", text, re.MULTILINE) if "<!--" not in term]
    assert len(terms) > 40
    unknown = [
        message
        for term in terms
        for message in re.findall(r"`([^`]+)`", term)
        if not all(part in source for part in message.split("..."))
    ]
    assert not unknown


def test_the_page_of_settings_has_every_command_and_every_extra() -> None:
    text = (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")
    assert dict.fromkeys(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)).keys() >= COMMANDS.keys()
    assert set(re.findall(r"`avmae\[(\w+)\]`", text)) == EXTRAS


@pytest.mark.parametrize("page", [README, CONTRIBUTING], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130
