"""Settings of data: one way to say them, with the same defaults everywhere."""

from dataclasses import asdict
from inspect import Parameter, signature
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from avmae.cli.config import CONF
from avmae.clip import ClipSpec
from avmae.data.build import EMBEDDED, FORMER_NAMES, SOURCES, build_data, keys_of
from avmae.data.datamodule import Loading
from avmae.errors import InputError

CLIP = ClipSpec(frames=4, size=32, mel_bins=32)
KINDS = sorted(path.stem for path in Path(CONF, "data").glob("*.yaml") if path.stem != "checkpoint")


def settings_of(kind: str, command: str = "stats") -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        return OmegaConf.to_container(compose(command, [f"data={kind}"]).data)


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_say_every_setting_and_the_defaults_of_the_code(kind: str) -> None:
    settings = settings_of(kind)
    source = settings.pop("source")
    assert settings.items() >= asdict(Loading()).items()
    if source is None:
        assert settings.keys() - asdict(Loading()).keys() == {"root"}
        return
    assert settings.keys() == set(keys_of(source))
    for name, parameter in signature(SOURCES[source]).parameters.items():
        if parameter.default is not Parameter.empty:
            assert settings[name] == parameter.default, name
    if kind in EMBEDDED:
        written = signature(SOURCES[source].args[0]).parameters
        assert all(settings[name] == written[name].default for name in ("groups", "clips_per_group", "classes"))


def test_every_source_has_a_file() -> None:
    assert {settings_of(kind)["source"] for kind in KINDS} - {None} == SOURCES.keys() >= set(FORMER_NAMES.values())


@pytest.mark.parametrize("command", ["evaluate", "features"])
def test_checkpoints_are_tested_with_the_keys_of_training(command: str) -> None:
    settings = settings_of("checkpoint", command)
    assert settings.keys() - {"_target_"} == {key for kind in KINDS for key in settings_of(kind)}
    assert not any(value is not None for value in settings.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "choose a kind"),
        ({"source": "ucf102"}, "there are synthetic, avdigits, duets, ucf101, csv, folder, shards"),
        ({"source": "nowhere.to.be.found:read"}, "nowhere"),
        ({"source": "os:nothing"}, "nothing"),
        ({"source": "ucf101"}, r"data\.root must be given"),
        ({"source": "ucf101", "root": None}, r"data\.root must be given"),
        ({"source": "ucf101", "root": "DIR", "val_share": 0.1}, r"unknown key data\.val_share"),
        ({"source": "ucf101", "root": "DIR", "workers": "many"}, r"data\.workers must be a number"),
        ({"source": "ucf101", "root": "DIR", "fold": 1.5}, r"data\.fold must be a whole number"),
        ({"source": "ucf101", "root": "DIR", "batch_size": 0}, "batch_size"),
    ],
)
def test_wrong_settings_are_named(settings: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build_data(settings, ClipSpec())


def test_older_names_mean_the_same(miniature: Path) -> None:
    root = {"root": str(miniature), "val_groups": 1}
    older = build_data({"_target_": "avmae.data.datamodule.UCF101DataModule"} | root, ClipSpec())
    assert older.listed == build_data({"source": "ucf101"} | root, ClipSpec()).listed


def test_each_reading_process_is_given_so_many_batches_ahead(miniature: Path) -> None:
    settings = {"source": "ucf101", "root": str(miniature), "workers": 1, "batch_size": 1}
    for prefetch in (1, 3):
        loader = build_data(settings | {"prefetch": prefetch}, CLIP).part_loader("test")
        batches = iter(loader)
        # Nothing was handed out yet: what the process was asked for is what it is ahead by.
        assert batches._tasks_outstanding == prefetch
        del batches
