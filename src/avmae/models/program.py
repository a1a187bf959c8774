"""A classifier as a program that needs torch alone."""

import torch
from torch.export import ExportedProgram

from avmae.models.classifier import Classifier


def to_program(model: Classifier) -> ExportedProgram:
    """Trace a classifier for any number of clips, given as a dict of its modalities and ``has_audio``."""
    grids = {name: encoder.grid for name, encoder in model.encoder.modalities.items()}
    # Two clips, for of one the program would be for one clip alone.
    clips = {name: torch.zeros(2, g.channels, g.stack * g.shape[0], *g.shape[1:]) for name, g in grids.items()}
    clips["has_audio"] = torch.ones(2, dtype=torch.bool)
    shapes = {name: {0: torch.export.Dim("clips", min=1)} for name in clips}
    return torch.export.export(model, (clips,), dynamic_shapes=(shapes,))
