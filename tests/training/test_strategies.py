from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from avmae.training.strategies import FSDP2Strategy


class Decoder(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,), value))
        self.register_buffer("positions", torch.ones(2))


def test_shards_without_the_decoders_positions_leave_the_computed_ones(tmp_path: Path) -> None:
    """As versions wrote them that did not keep these tables."""
    strategy, saved = FSDP2Strategy(), nn.ModuleDict({"decoder": Decoder(3.0)})
    strategy._model = model = nn.ModuleDict({"decoder": Decoder(0.0)})
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path / "shards-1"), save_distributed=True)
    dcp.save({"model.decoder.weight": saved["decoder"].weight.data}, storage_writer=writer, no_dist=True)
    torch.save({"shards": "shards-1", "param_groups": [], "epoch": 4}, tmp_path / "meta.pt")
    assert strategy.load_checkpoint(tmp_path)["epoch"] == 4
    assert torch.equal(model["decoder"].weight, saved["decoder"].weight)
    assert torch.equal(model["decoder"].positions, torch.ones(2))
