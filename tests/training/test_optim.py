import copy
import math
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from timm.optim import Muon, param_groups_layer_decay
from torch.utils._python_dispatch import TorchDispatchMode

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.build import ModelSpec, SizeSpec, build_classifier
from avmae.models.classifier import Classifier
from avmae.models.start import start_from
from avmae.training.optim import FullPrecisionMuon, OptimSpec, build_optimizer, warmup_cosine

SIZE = SizeSpec("test", 24, 3, 2, 2, 12, 1, 2)
DECAYED = OptimSpec(base_lr=0.5, layer_decay=0.7)


@pytest.fixture(scope="module")
def network() -> Classifier:
    return build_classifier(ClipSpec(frames=4, size=32, mel_bins=32), ModelSpec("avmae"), SIZE, classes=5)


class Dtypes(TorchDispatchMode):
    """Which number formats matrices are multiplied in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation is torch.ops.aten.addmm.out:
            self.found.add(args[0].dtype)
        return operation(*args, **(kwargs or {}))


def rates(network: Classifier, spec: OptimSpec, loaded: Collection[str] = ()) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = build_optimizer(network, spec, 512, loaded).param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_rate_follows_the_batch_and_every_parameter_is_in_one_group(network: Classifier) -> None:
    found = rates(network, OptimSpec(base_lr=1e-3))
    assert found.keys() == {name for name, _ in network.named_parameters()}
    assert {lr for lr, _ in found.values()} == {2e-3}


def test_biases_norms_and_tokens_do_not_decay() -> None:
    clip = ClipSpec(frames=4, size=32, mel_bins=32)
    network = build_classifier(clip, ModelSpec("avmae"), SIZE, classes=5, pool="attention")
    found = rates(network, OptimSpec(base_lr=1e-3, weight_decay=0.1))
    for name, parameter in network.named_parameters():
        # Queries of attention pooling have three axes.
        assert found[name][1] == (0.1 if parameter.ndim == 2 else 0.0), name


@pytest.mark.parametrize("depths", [(12, 12), (24, 12), (32, 12)], ids=["base", "large", "huge"])
def test_layer_decay_counts_from_the_top_of_each_modality(depths: tuple[int, int]) -> None:
    size = SizeSpec("test", 24, depths[0], 2, depths[1], 12, 1, 2)
    network = build_classifier(ClipSpec(frames=4, size=32, mel_bins=32), ModelSpec("avmae"), size, classes=5)
    rate = {name: lr for name, (lr, _) in rates(network, DECAYED, list(network.state_dict())).items()}
    for modality, depth in zip(("video", "audio"), depths, strict=True):
        stack = f"encoder.modalities.{modality}."
        blocks = (f"{stack}blocks.{number}.mlp.fc1.weight" for number in reversed(range(depth)))
        chain = [f"heads.{modality}.weight", *blocks, f"{stack}embed.weight"]
        assert [rate[name] for name in chain] == pytest.approx([0.7**i for i in range(depth + 2)])
    assert rate["encoder.modalities.audio.absent"] == rate["encoder.modalities.audio.embed.bias"]
    assert rate["encoder.fusion.0.key_value.weight"] == 1


def test_what_is_fresh_gets_the_full_rate(network: Classifier, tmp_path: Path) -> None:
    full = rates(network, OptimSpec(base_lr=0.5))
    assert rates(network, DECAYED) == full, "from scratch there is nothing to keep"
    clip = ClipSpec(frames=4, size=32, mel_bins=32)
    pictures = build_classifier(clip, ModelSpec("videomae", ("video",), "none"), SIZE, classes=7)
    config = {"task": "classify", "classes": 7, "dropout": 0.0, "clip": asdict(clip), "size": asdict(SIZE)}
    config["model"] = {"name": "videomae", "modalities": ["video"], "fusion": "none"}
    weights = {f"network.{name}": value for name, value in pictures.state_dict().items()}
    torch.save({"config": config, "state_dict": weights}, tmp_path / "k400.ckpt")
    started = copy.deepcopy(network)
    match = start_from(started, tmp_path / "k400.ckpt")
    found = rates(started, DECAYED, match.filled)
    slowed = {name for name, (lr, _) in found.items() if lr < 1}
    assert slowed == {name for name in found if name.startswith("encoder.modalities.video.")}
    assert {name: value for name, value in found.items() if name not in slowed} == {
        name: value for name, value in full.items() if name not in slowed
    }


def test_groups_lie_as_in_checkpoints_that_do_not_say_what_was_loaded(network: Classifier) -> None:
    """They were timm's, by the number of a block in whatever modality; a resumed run's rates are its checkpoint's."""
    layers = {
        "stem": r"encoder\.modalities\.\w+\.(?:embed|absent)",
        "blocks": r"encoder\.modalities\.\w+\.blocks\.(\d+)",
    }
    network.group_matcher = lambda coarse: layers
    theirs = param_groups_layer_decay(network, 0.05, ["poolings.*.latent"], layer_decay=0.7)
    del network.group_matcher
    ours = build_optimizer(network, DECAYED, 512)
    assert [list(map(id, group["params"])) for group in ours.param_groups] == [
        list(map(id, group["params"])) for group in theirs
    ]
    before = torch.optim.AdamW(theirs, lr=1.0)
    for group in before.param_groups:
        group["lr"] = group["lr_scale"]
    ours.load_state_dict(before.state_dict())
    assert [group["lr"] for group in ours.param_groups] == [group["lr_scale"] for group in theirs]


def test_schedule_rises_linearly_and_falls_to_its_floor() -> None:
    factor = warmup_cosine(OptimSpec(base_lr=1, warmup=0.1, min_lr=0.01), 100)
    values = [factor(step) for step in range(101)]
    assert values[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert values[10] == pytest.approx(1.0)
    assert values[10:] == sorted(values[10:], reverse=True)
    assert values[100] == pytest.approx(0.01)
    assert values[55] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor(1000) == pytest.approx(0.01)


@pytest.mark.parametrize("settings", [{"base_lr": 0}, {"base_lr": 1, "warmup": 1}, {"base_lr": 1, "layer_decay": 0}])
def test_settings_out_of_range(settings: dict) -> None:
    with pytest.raises(InputError, match="optim"):
        OptimSpec(**settings)


def test_muon_takes_a_step_and_keeps_layer_rates(network: Classifier) -> None:
    spec = OptimSpec(base_lr=1e-3, kind="muon", layer_decay=0.5)
    loaded = list(network.state_dict())
    adamw = rates(network, OptimSpec(base_lr=1e-3, layer_decay=0.5), loaded)
    assert rates(network, spec, loaded) == adamw
    optimizer = build_optimizer(network, spec, effective_batch=512)
    weight = network.get_parameter("encoder.modalities.video.blocks.0.mlp.fc1.weight")
    before = weight.detach().clone()
    gradient = before * torch.logspace(-2, 1, len(before))[:, None]
    weight.grad = gradient.clone()
    optimizer.step()
    moved = (weight.detach() - before).double()
    # Orthogonalised: the step's singular values are near to each other, while those of the gradient are not.
    spread = [float(s.max() / s.median()) for s in (moved.svd().S, gradient.double().svd().S)]
    assert spread[0] < 1.6 < 1.9 < spread[1]
    weight.grad = None


def test_muon_for_processors_without_bf16_steps_as_timms_does_but_for_rounding() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(48, 96), torch.randn(48, 96)
    moved, dtypes = [], []
    for kind in (Muon, FullPrecisionMuon, Muon):
        weight = torch.nn.Parameter(start.clone())
        weight.grad = gradient.clone()
        with Dtypes() as products:
            kind([weight], lr=0.1).step()
        dtypes.append(products.found)
        moved.append(start - weight.detach())
    assert dtypes == [{torch.bfloat16}, {torch.float32}, {torch.bfloat16}]
    assert torch.equal(moved[0], moved[2])
    torch.testing.assert_close(moved[1], moved[0], rtol=0.1, atol=0.05 * moved[0].abs().max().item())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"optim\.kind=sgd"):
        OptimSpec(base_lr=1e-3, kind="sgd")
