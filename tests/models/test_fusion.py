import pytest
import torch
from systems import SYSTEMS, autoencoder, batch, disturb, draw, without_gradient
from torch import Tensor, nn

from avmae.models.fusion import ConcatFusion, JointCrossAttention, NoFusion

DIM, HEADS = 12, 3
COUNTS = {"video": 6, "audio": 4, "depth": 3}


def build(fusion: str, modalities: list[str]) -> nn.Module:
    torch.manual_seed(0)
    if fusion == "none":
        return NoFusion()
    if fusion == "concat":
        return ConcatFusion(modalities, DIM)
    layers = 2 if fusion == "two_layers" else 1
    return nn.Sequential(*(JointCrossAttention(modalities, DIM, HEADS) for _ in range(layers)))


def opened(fusion: str, modalities: list[str]) -> nn.Module:
    module = build(fusion, modalities)
    disturb(module)
    return module


def tokens_of(modalities: list[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(2, COUNTS[name], DIM, generator=generator) for name in modalities}


@pytest.mark.parametrize("modalities", [["video"], ["video", "audio"], ["video", "audio", "depth"]], ids=len)
@pytest.mark.parametrize("fusion", ["none", "concat", "cross_attention", "two_layers"])
class TestContract:
    def test_hands_the_tokens_on_unchanged_at_first(self, fusion: str, modalities: list[str]) -> None:
        tokens = tokens_of(modalities)
        fused = build(fusion, modalities)(tokens)
        assert list(fused) == modalities
        assert all(torch.equal(fused[name], tokens[name]) for name in modalities)

    def test_keeps_shapes_and_clips_apart(self, fusion: str, modalities: list[str]) -> None:
        module, tokens = opened(fusion, modalities), tokens_of(modalities)
        fused = module(tokens)
        assert {name: x.shape for name, x in fused.items()} == {name: x.shape for name, x in tokens.items()}
        second = module({name: x[1:] for name, x in tokens.items()})
        for name in modalities:
            torch.testing.assert_close(second[name], fused[name][1:])

    def test_leaves_its_input_alone(self, fusion: str, modalities: list[str]) -> None:
        tokens = tokens_of(modalities)
        opened(fusion, modalities)(tokens)
        assert all(torch.equal(x, tokens_of(modalities)[name]) for name, x in tokens.items())

    def test_every_parameter_learns(self, fusion: str, modalities: list[str]) -> None:
        module, tokens = opened(fusion, modalities), tokens_of(modalities)
        fused = module({name: x.requires_grad_() for name, x in tokens.items()})
        # A plain sum would not tell tokens apart.
        torch.stack([x.pow(3).sum() for x in fused.values()]).sum().backward()
        assert all(x.grad is not None and x.grad.any() for x in tokens.values())
        assert without_gradient(module) == []


@pytest.mark.parametrize("fusion", ["concat", "cross_attention", "two_layers"])
class TestModalitiesMeet:
    def test_each_reaches_every_token_of_each_other(self, fusion: str) -> None:
        module, tokens = opened(fusion, list(COUNTS)), tokens_of(list(COUNTS))
        fused = module(tokens)
        for source in COUNTS:
            # Another direction: a layer norm would undo a mere shift or scale.
            changed = module(tokens | {source: tokens[source].roll(1, -1)})
            for name in COUNTS:
                assert ((changed[name] - fused[name]).abs().amax(-1) > 1e-4).all(), f"{source} to {name}"

    def test_the_gates_learn_from_the_first_step(self, fusion: str) -> None:
        module = build(fusion, ["video", "audio"])
        fused = module(tokens_of(["video", "audio"]))
        torch.stack([x.pow(3).sum() for x in fused.values()]).sum().backward()
        gates = [p for name, p in module.named_parameters() if name.endswith("gamma")]
        assert gates
        assert all(gate.grad is not None and gate.grad.any() for gate in gates)


def test_concat_gives_all_tokens_the_same_summary_and_no_attention() -> None:
    module, tokens = opened("concat", ["video", "audio"]), tokens_of(["video", "audio"])
    fused = module(tokens)
    shuffled = module(tokens | {"audio": tokens["audio"].flip(1)})
    torch.testing.assert_close(shuffled["video"], fused["video"])
    torch.testing.assert_close(shuffled["audio"], fused["audio"].flip(1))
    # A token does not look at the others of its own modality.
    video = tokens["video"].clone()
    video[:, 0] = video[:, 0].roll(1, -1)
    changed = module(tokens | {"video": video})
    assert torch.equal(changed["video"][:, 1:], fused["video"][:, 1:])
    assert not torch.allclose(changed["video"][:, 0], fused["video"][:, 0])


def test_cross_attention_looks_at_single_tokens_of_the_joint_sequence() -> None:
    module, tokens = opened("cross_attention", ["video", "audio"]), tokens_of(["video", "audio"])
    layer = module[0]
    fused = layer(tokens)
    normed = {name: layer.norms[name](x) for name, x in tokens.items()}
    joint = torch.cat([normed["video"], normed["audio"]], 1)
    key, value = layer.key_value(joint).split(DIM, -1)
    width = DIM // HEADS
    for name, x in tokens.items():
        query = layer.queries[name](normed[name])
        heads = []
        for h in range(HEADS):
            part = slice(h * width, (h + 1) * width)
            weights = (query[..., part] @ key[..., part].transpose(1, 2) / width**0.5).softmax(-1)
            heads.append(weights @ value[..., part])
        attended = x + layer.attention_gates[name].gamma * layer.projections[name](torch.cat(heads, -1))
        mlp = layer.mlps[name](layer.mlp_norms[name](attended))
        torch.testing.assert_close(fused[name], attended + layer.mlp_gates[name].gamma * mlp)


@pytest.mark.parametrize("fusion", ["cross_attention", "two_layers"])
def test_attention_weights_are_those_of_the_forward_pass(fusion: str) -> None:
    module, tokens = opened(fusion, ["video", "audio"]), tokens_of(["video", "audio"])
    for layer in module:
        heard = []
        for projection in layer.projections.values():
            projection.register_forward_pre_hook(lambda _, inputs, heard=heard: heard.append(inputs[0]))
        fused = layer(tokens)
        joint = torch.cat([layer.norms[name](x) for name, x in tokens.items()], 1)
        value = layer.key_value(joint)[..., DIM:].unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for (name, weights), expected in zip(layer.attention(tokens).items(), heard, strict=True):
            assert {k: w.shape for k, w in weights.items()} == {k: (2, HEADS, COUNTS[name], COUNTS[k]) for k in weights}
            attended = torch.cat([weights["video"], weights["audio"]], -1) @ value
            torch.testing.assert_close(attended.transpose(1, 2).flatten(2), expected)
        tokens = fused


@pytest.mark.parametrize("masked", [False, True])
def test_an_encoder_tells_what_the_last_layer_of_its_fusion_attends_to(masked: bool) -> None:
    model, clips = autoencoder("avmae", fusion_depth=2), batch()
    disturb(model)
    visible = {name: mask.visible for name, mask in draw(model).items()} if masked else None
    arguments = (model.encoder.patchify(clips), {"audio": clips["has_audio"]}, visible)
    last, heard = model.encoder.fusion[-1], {}
    last.projections["audio"].register_forward_pre_hook(lambda _, inputs: heard.update(audio=inputs[0]))
    last.key_value.register_forward_hook(lambda _, __, output: heard.update(value=output.chunk(2, -1)[1]))
    model.encoder(*arguments)
    weights = model.encoder.cross_attention(*arguments)["audio"]
    attended = torch.cat(list(weights.values()), -1) @ heard["value"].unflatten(-1, (last.heads, -1)).transpose(1, 2)
    torch.testing.assert_close(attended.transpose(1, 2).flatten(2), heard["audio"])


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "avmae"])
def test_an_encoder_without_cross_attention_says_so(system: str) -> None:
    model, clips = autoencoder(system), batch()
    assert model.encoder.cross_attention(model.encoder.patchify(clips), {"audio": clips["has_audio"]}) is None
