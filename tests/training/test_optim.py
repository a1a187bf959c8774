import math

import pytest
import torch
from torch import nn

from avmae.clip import ClipSpec
from avmae.errors import InputError
from avmae.models.build import ModelSpec, SizeSpec, build_classifier
from avmae.training.optim import OptimSpec, build_optimizer, warmup_cosine

SIZE = SizeSpec("test", 24, 3, 2, 2, 12, 1, 2)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_classifier(ClipSpec(frames=4, size=32, mel_bins=32), ModelSpec("avmae"), SIZE, classes=5)


def rates(network: nn.Module, spec: OptimSpec) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    groups = build_optimizer(network, spec, effective_batch=512).param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_rate_follows_the_batch_and_every_parameter_is_in_one_group(network: nn.Module) -> None:
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


def test_layer_decay_falls_by_its_factor_from_head_to_embedding(network: nn.Module) -> None:
    found = rates(network, OptimSpec(base_lr=0.5, layer_decay=0.7))
    rate = {name: lr for name, (lr, _) in found.items()}
    video = "encoder.modalities.video."
    chain = ["heads.video.weight", *(f"{video}blocks.{i}.mlp.fc1.weight" for i in (2, 1, 0)), f"{video}embed.weight"]
    assert [rate[name] for name in chain] == pytest.approx([0.7**i for i in range(5)])
    assert rate["encoder.fusion.0.key_value.weight"] == rate["heads.video.weight"]


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


def test_muon_takes_a_step_and_keeps_layer_rates(network: nn.Module) -> None:
    spec = OptimSpec(base_lr=1e-3, kind="muon", layer_decay=0.5)
    adamw = rates(network, OptimSpec(base_lr=1e-3, layer_decay=0.5))
    assert rates(network, spec) == adamw
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


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InputError, match=r"optim\.kind=sgd"):
        OptimSpec(base_lr=1e-3, kind="sgd")
