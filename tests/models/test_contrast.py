import math

import pytest
import torch
from torch.testing import assert_close

from avmae.models.contrast import info_nce, recall


@pytest.fixture
def vectors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 8, generator=generator), torch.randn(6, 8, generator=generator)


class TestInfoNCE:
    def test_equals_its_formula(self, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
        video, audio = vectors
        total = 0.0
        for i in range(6):
            similar = torch.cosine_similarity(video[i][None], audio)
            heard = torch.cosine_similarity(audio[i][None], video)
            for scores in (similar / 0.1, heard / 0.1):
                total -= math.log(float(scores[i].exp() / scores.exp().sum())) / 12
        loss = info_nce(video, audio, torch.ones(6, dtype=torch.bool), 0.1)
        assert_close(float(loss), total, rtol=1e-5, atol=0)

    def test_silent_clips_are_neither_asked_nor_candidates(self, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
        video, audio = (x.clone().requires_grad_() for x in vectors)
        sounding = torch.tensor([True, False, True, True, False, True])
        loss = info_nce(video, audio, sounding, 0.1)
        alone = info_nce(video[sounding], audio[sounding], torch.ones(4, dtype=torch.bool), 0.1)
        assert_close(loss, alone)
        loss.backward()
        for x in (video, audio):
            assert x.grad is not None
            assert not x.grad[~sounding].any()
            assert x.grad[sounding].abs().sum(1).gt(0).all()

    def test_autocast_does_not_round_it(self, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
        every = torch.ones(6, dtype=torch.bool)
        expected = info_nce(*vectors, every, 0.05)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(info_nce(*vectors, every, 0.05), expected)

    def test_a_silent_batch_has_no_loss_and_finite_gradients(self, vectors: tuple[torch.Tensor, torch.Tensor]) -> None:
        video, audio = (x.clone().requires_grad_() for x in vectors)
        loss = info_nce(video, audio, torch.zeros(6, dtype=torch.bool), 0.05)
        loss.backward()
        assert loss == 0
        assert video.grad is not None
        assert not video.grad.any()


class TestRecall:
    def test_perfect_and_reversed_order(self) -> None:
        vectors = torch.eye(4)
        assert set(recall(vectors, vectors).values()) == {1.0}
        assert recall(vectors, vectors.roll(1, 0), (1,)) == {"video_to_audio/r1": 0.0, "audio_to_video/r1": 0.0}

    def test_a_collapsed_model_is_no_better_than_chance(self) -> None:
        same = torch.ones(20, 3)
        assert recall(same, same, (1, 5)) == {
            f"{way}/r{k}": 0 for way in ("video_to_audio", "audio_to_video") for k in (1, 5)
        }

    def test_directions_differ(self) -> None:
        video = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        audio = torch.tensor([[1.0, 0.1], [1.0, 0.2]])
        found = recall(video, audio, (1,))
        assert found["video_to_audio/r1"] == 0.5
