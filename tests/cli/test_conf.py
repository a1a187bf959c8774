"""Every shipped config composes, and every choice of a group works alone."""

import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import lightning
import pytest
from composing import composed
from omegaconf import OmegaConf

from avmae.cli.config import CONF
from avmae.clip import ClipSpec
from avmae.data.augment import AugmentSpec
from avmae.errors import InputError
from avmae.models.build import MaskSpec, ModelSpec, SizeSpec
from avmae.runs.settings import spec
from avmae.training.build import OURS
from avmae.training.hardware import accumulation
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


ARGUMENTS = {
    "pretrain_ucf101": """batch_size epochs save_ckpt_freq model decoder_depth mask_type mask_ratio input_size drop_path
        normlize_target opt opt_eps opt_betas clip_grad momentum weight_decay weight_decay_end lr warmup_lr min_lr
        warmup_epochs warmup_steps use_checkpoint color_jitter train_interpolation imagenet_default_mean_and_std
        num_frames sampling_rate seed num_workers""",
    "finetune_ucf101": """batch_size epochs update_freq save_ckpt_freq model tubelet_size input_size fc_drop_rate drop
        attn_drop_rate drop_path disable_eval_during_finetuning model_ema model_ema_decay model_ema_force_cpu opt
        opt_eps opt_betas clip_grad momentum weight_decay weight_decay_end lr layer_decay warmup_lr min_lr
        warmup_epochs warmup_steps color_jitter num_sample aa smoothing train_interpolation crop_pct short_side_size
        test_num_segment test_num_crop reprob remode recount resplit mixup cutmix cutmix_minmax mixup_prob
        mixup_switch_prob mixup_mode init_scale use_checkpoint use_mean_pooling use_cls num_segments num_frames
        sampling_rate seed num_workers enable_deepspeed dist_eval imagenet_default_mean_and_std""",
}
"""What the programs of VideoMAE's scripts take, but for paths, names and the addresses of processes."""


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_into_settings_that_are_understood(choice: str) -> None:
    config = composed("data.root=DIR", "ckpt=PATH", choice)
    for key, cls in SPECS.items():
        spec(cls, key, config[key])
    given = {key for key in config["trainer"] if key not in OURS}
    assert given <= inspect.signature(lightning.Trainer).parameters.keys()


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_asks_for_what_it_or_a_choice_of_it_makes_mandatory(experiment: str) -> None:
    """OmegaConf keeps null where ??? is merged over it, so ??? in a recipe may say what nobody enforces."""
    config = composed(f"experiment={experiment}", "data.root=DIR", "ckpt=PATH")
    assert config["name"] != "" if experiment in ("demo_base", "duets_base") else config["name"] == experiment
    written: Any = OmegaConf.to_container(OmegaConf.load(f"{CONF}/experiment/{experiment}.yaml"))
    leaves = [(key, value) for key, value in written.items() if not isinstance(value, dict)]
    leaves += [(f"{k}.{key}", v) for k, node in written.items() if isinstance(node, dict) for key, v in node.items()]
    needed = [key for key, value in leaves if value == "???"] + list(written.get("requires", []))
    if "ucf101" in experiment:
        needed.append("data.root")
    if experiment in ("probe_ucf101", "finetune_ucf101_k400", "duets_probe", "actions_probe"):
        needed.append("ckpt")
    if not needed:
        composed(f"experiment={experiment}")
        return
    with pytest.raises(InputError) as raised:
        composed(f"experiment={experiment}")
    named = str(raised.value).partition(" must be given")[0].split(" and ")
    assert named == sorted(set(needed))


def test_a_run_that_is_resumed_has_what_its_recipe_requires() -> None:
    assert composed("experiment=probe_ucf101", "data.root=DIR", "resume=last")["ckpt"] is None


def test_the_recipes_make_the_published_step_on_any_number_of_gpus() -> None:
    for experiment, clips in (("pretrain_ucf101", 192), ("finetune_ucf101", 128), ("finetune_ucf101_k400", 128)):
        config = composed(f"experiment={experiment}", "data.root=DIR", "ckpt=PATH")
        for processes in (1, 2, 4, 8):
            config["trainer"] |= {"devices": processes, "num_nodes": 1}
            batches = accumulation(config["trainer"], config["data"]["batch_size"])
            assert batches * processes * config["data"]["batch_size"] == clips


def test_the_papers_recipe() -> None:
    config = composed("experiment=pretrain_ucf101", "data.root=DIR")
    assert (config["trainer"]["max_epochs"], config["mask"]["video"], config["mask"]["ratio"]) == (3200, "tube", 0.75)
    assert (config["clip"]["frames"], config["clip"]["stride"], config["clip"]["size"]) == (16, 4, 224)
    assert (config["optim"]["base_lr"], config["data"]["batch_size"], config["data"]["val_groups"]) == (3e-4, 24, 0)
    assert (config["augment"]["crop"], config["augment"]["flip"], config["augment"]["repeats"]) == ("multiscale", 0, 1)
    assert (config["augment"]["rand_operations"], config["augment"]["erase"]) == (0, 0)
    tuned = composed("experiment=finetune_ucf101", "data.root=DIR", "ckpt=PATH")
    assert tuned["augment"] == {
        "crop": "random",
        "scale": [0.08, 1.0],
        "ratio": [0.75, 1.3333],
        "flip": 0.5,
        "repeats": 2,
        "rand_operations": 4,
        "rand_magnitude": 7,
        "rand_std": 0.5,
        "erase": 0.25,
    }
    assert tuned["task"]["mix"] == {"mixup": 0.8, "cutmix": 1.0, "switch": 0.5}


@pytest.mark.parametrize("recipe", ARGUMENTS)
def test_the_documented_recipes_are_those_of_the_config_files(recipe: str) -> None:
    text = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
    section = text.partition(f": `{recipe}`\n")[2].partition("\n## ")[0]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line]
    header, _, *rows = table
    assert header == ["VideoMAE's argument", "UCF101", "Kinetics-400", "ours", "setting", "why ours differs"]
    assert set(re.findall(r"`--(\w+)`", section)) == set(ARGUMENTS[recipe].split())
    config = OmegaConf.create(composed(f"experiment={recipe}", "data.root=DIR"))
    keys = []
    for name, theirs, _, ours, setting, why in rows:
        if setting:
            keys.append(setting.strip("`"))
            written, used = (OmegaConf.create({"value": OmegaConf.create(f"value: {x}").value}) for x in (ours, theirs))
            assert OmegaConf.select(config, keys[-1]) == written.value, name
            assert why or written == used, f"{name}: why do ours and theirs differ?"
    assert len(keys) == len(set(keys)) > 25


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
    source = Path(__file__).parents[2]
    build = "import sys; from hatchling.builders.wheel import *; print(*WheelBuilder('.').build(directory=sys.argv[1]))"
    built = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(built.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(tmp_path / "site")
    (scripts,) = (tmp_path / "site").glob("avmae-*.dist-info/entry_points.txt")
    assert "avmae = avmae.__main__:main" in scripts.read_text()
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
