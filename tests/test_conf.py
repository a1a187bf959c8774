"""Every shipped config composes, and every choice of a group works alone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from avmae.clip import ClipSpec
from avmae.command import CONF, plain, spec
from avmae.data.augment import AugmentSpec
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec
from avmae.training.optim import OptimSpec

CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(Path(CONF).glob("*/*.yaml"))
    # Ray's launcher does not install beside the versions that are pinned here.
    if path.parent.name not in ("experiment", "study") and path.stem != "ray"
]
EXPERIMENTS = sorted(path.stem for path in Path(CONF, "experiment").glob("*.yaml"))
SPECS = {
    "clip": ClipSpec,
    "model": ModelSpec,
    "size": SizeSpec,
    "mask": MaskSpec,
    "optim": OptimSpec,
    "augment": AugmentSpec,
}


def composed(*overrides: str) -> dict:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [*overrides, "hydra.runtime.output_dir=run"], return_hydra_config=True)
    from hydra.core.hydra_config import HydraConfig

    HydraConfig.instance().set_config(config)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return plain(config)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_into_settings_that_are_understood(choice: str) -> None:
    config = composed("data.root=DIR", choice)
    for key, cls in SPECS.items():
        spec(cls, key, config[key])
    assert config["trainer"]["_target_"] == "lightning.Trainer"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes(experiment: str) -> None:
    config = composed(f"experiment={experiment}", "data.root=DIR", "ckpt=PATH")
    assert config["name"] != "" if experiment == "demo_base" else config["name"] == experiment


def test_the_papers_recipe() -> None:
    config = composed("experiment=pretrain_ucf101", "data.root=DIR")
    assert (config["trainer"]["max_epochs"], config["mask"]["video"], config["mask"]["ratio"]) == (3200, "tube", 0.75)
    assert (config["clip"]["frames"], config["clip"]["stride"], config["clip"]["size"]) == (16, 4, 224)
    assert (config["optim"]["base_lr"], config["data"]["batch_size"], config["data"]["val_groups"]) == (3e-4, 24, 0)


@pytest.mark.parametrize(
    ("overrides", "share"),
    [
        (["experiment=finetune"], 0.5),
        (["experiment=finetune_ucf101", "model=avmae_concat"], 0.5),
        (["experiment=finetune_ucf101", "model=videomae"], 0),
        (["experiment=finetune_ucf101", "model.may_lack=[]"], 0),
        (["experiment=finetune_ucf101", "task.drop_audio=0.1"], 0.1),
        (["experiment=probe_ucf101", "ckpt=PATH"], 0),
    ],
)
def test_fine_tuning_drops_audio_where_there_is_some_and_it_may_be_absent(overrides: list[str], share: float) -> None:
    assert composed("data.root=DIR", *overrides)["task"]["drop_audio"] == share


def test_an_installed_wheel_runs_from_any_folder(tmp_path: Path) -> None:
    source = Path(__file__).parents[1]
    build = "import sys; from hatchling.builders.wheel import *; print(*WheelBuilder('.').build(directory=sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(built.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    shown = subprocess.run(
        [sys.executable, "-m", "avmae.train", "--cfg", "job", "experiment=pretrain_ucf101", "data.root=DIR"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert "max_epochs: 3200" in shown.stdout, shown.stderr
    located = "import avmae; print(avmae.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", located], env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True
    )
    assert where.stdout.startswith(str(tmp_path)), "the wheel was what ran, not the source folder"
