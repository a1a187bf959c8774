"""Metrics of reconstructions."""

import numpy as np
import pytest
import torch

from avmae.viewing.reconstruction import video_metrics


def test_psnr_and_ssim_are_those_of_masked_pixels() -> None:
    truth = np.full((2, 32, 32, 3), 51, np.uint8)
    frames = truth.copy()
    frames[0] = 102
    # What is visible differs, too, and does not count.
    frames[1] = 255
    masked = torch.zeros(3, 2, 32, 32, dtype=torch.bool)
    masked[:, 0] = True
    found = video_metrics(frames, truth, masked)
    # An error of 0.2 everywhere; between even surfaces only the first factor of SSIM is not 1.
    assert found["psnr_hidden"] == pytest.approx(-10 * np.log10(0.2**2), abs=1e-4)
    assert found["ssim_hidden"] == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), abs=1e-4)
    same = video_metrics(truth, truth, masked)
    assert same == pytest.approx({"psnr_hidden": 100.0, "ssim_hidden": 1.0})
