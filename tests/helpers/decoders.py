"""The systems with VideoMAE's decoder and with those that see both modalities."""

import pytest
import systems
import torch
from systems import HEARING, SYSTEMS, disturb
from torch import Tensor

from avmae.models.autoencoder import MaskedAutoencoder
from avmae.models.masking import Mask
from avmae.models.tokens import gather_tokens, scatter_tokens

OVER_BOTH = ["avmae_concat cross", "avmae joint", "avmae cross", "avmae aligned"]
"""Systems whose decoder sees both modalities."""
OTHER_DECODERS = ["imagemae cross", "videomae joint", "videomae cross", *OVER_BOTH]
every_system = pytest.mark.parametrize("system", [*SYSTEMS, *OTHER_DECODERS])
every_hearing_system = pytest.mark.parametrize("system", [*HEARING, *OVER_BOTH])


def autoencoder(system: str, seed: int = 0, **changes: object) -> MaskedAutoencoder:
    """A system with VideoMAE's decoder, or another."""
    name, _, decoder = system.partition(" ")
    return systems.autoencoder(name, seed, decoder=decoder or "self", **changes)


def disturbed(system: str, **changes: object) -> MaskedAutoencoder:
    model = autoencoder(system, **changes)
    disturb(model)
    return model


def replaced(
    model: MaskedAutoencoder, clips: dict[str, Tensor], masks: dict[str, Mask], part: str
) -> dict[str, Tensor]:
    """The clips with other content in all visible, or all hidden, patches."""
    result = dict(clips)
    for name, patches in model.encoder.patchify(clips).items():
        own = {key: gather_tokens(patches, index) for key, index in masks[name]._asdict().items()}
        own[part] = torch.randn(own[part].shape, generator=torch.Generator().manual_seed(9)) * 3 + 1
        tokens = scatter_tokens([(own[key], index) for key, index in masks[name]._asdict().items()])
        result[name] = model.decoders[name].grid.unpatchify(tokens)
    return result
