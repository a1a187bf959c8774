"""Losses and gradients that are not finite."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import CALLBACKS, error
from run_files import load, metrics
from running import Start
from timm.optim import Muon

from avmae.runs.folder import LAST
from avmae.training.nonfinite import skip_if


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["adamw", "unfused adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(kind: str, first: bool) -> None:
    finite = [torch.randn(4, 4), torch.randn(4, 4)]
    poisoned = torch.tensor([float("nan")] + [1.0] * 15).reshape(4, 4)

    def steps(*gradients: torch.Tensor) -> list[torch.Tensor]:
        """All that there is after them."""
        weight, bias = torch.nn.Parameter(torch.ones(4, 4)), torch.nn.Parameter(torch.ones(4))
        optimizer: torch.optim.Optimizer = (
            Muon([weight, bias], lr=0.1, weight_decay=0.1)
            if kind == "muon"
            else torch.optim.AdamW([weight, bias], lr=0.1, fused=kind == "adamw")
        )
        for gradient in gradients:
            weight.grad, bias.grad = gradient.clone(), gradient[0].clone()
            skip_if(~torch.nn.utils.clip_grad_norm_([weight, bias], 1.0).isfinite(), optimizer)
            optimizer.step()
        state = [value for of in optimizer.state.values() for value in of.values() if torch.is_tensor(value)]
        return [weight.detach(), bias.detach(), *state]

    place = 0 if first else 1
    assert_equal(steps(*finite[:place], poisoned, *finite[place:]), steps(*finite))
    assert not torch.equal(steps(*finite)[0], steps(finite[0])[0])


def assert_equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    assert all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def test_steps_without_a_finite_loss_are_skipped_until_there_are_too_many(
    start: Start, miniature: Path, tmp_path: Path
) -> None:
    poison = ("+callbacks.poison._target_=poison.Poison", "+callbacks.poison.steps=[1,5,6,7,8]")
    arguments = ("hydra.run.dir=run", "trainer.max_epochs=9", "trainer.log_every_n_steps=1", *poison)
    output = tmp_path / "printed.txt"
    arguments = (*arguments, "callbacks.nonfinite.limit=3")
    process = start(*arguments, miniature=miniature, env=CALLBACKS)
    assert process.wait(120) == 1
    message = error(output.read_text())
    for part in ("3 steps in a row", "step 8", "optim.base_lr", "optim.clip_norm", "precision", "skipped.jsonl"):
        assert part in message
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 6, 7, 8]
    assert all(len(line["clips"]) == 4 and all(Path(clip).is_file() for clip in line["clips"]) for line in lines)
    rows = {int(row["step"]): row for row in metrics(tmp_path / "run") if row["train/loss"]}
    assert rows[1]["train/loss"] == "nan"
    assert float(rows[4]["train/loss"]) > 0, "one bad step does no harm"
    assert float(rows[4]["train/skipped"]) == 1
    last = load(tmp_path / "run/checkpoints" / LAST)
    assert all(value.isfinite().all() for value in last["state_dict"].values())


@pytest.mark.parametrize(("strategy", "kind"), [("single", "muon"), ("ddp", "adamw"), ("fsdp", "adamw")])
def test_a_loss_that_is_not_finite_skips_the_step_of_all_processes_whatever_its_gradient(
    strategy: str, kind: str, start: Start, miniature: Path, tmp_path: Path
) -> None:
    poison = ("+callbacks.poison._target_=poison.PoisonLoss", "+callbacks.poison.steps=[1,2]")
    keep = ("callbacks.last.filename='step{step}'", "+callbacks.last.save_top_k=-1", "callbacks.best.save_top_k=0")
    every = ("callbacks.last.every_n_epochs=null", "callbacks.last.every_n_train_steps=1")
    how = (f"strategy={strategy}", f"trainer.devices={1 if strategy == 'single' else 2}", f"optim.kind={kind}")
    arguments = ("hydra.run.dir=run", "trainer.max_steps=4", "trainer.clips_per_step=4", "optim.warmup=0", *poison)
    process = start(*arguments, *keep, *every, *how, "data.batch_size=1", miniature=miniature, env=CALLBACKS)
    assert process.wait(120) == 0, (tmp_path / "printed.txt").read_text()
    lines = [json.loads(line) for line in (tmp_path / "run/skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3]
    assert all(len(line["clips"]) == 4 for line in lines)
    saved = [load(file)["state_dict"] for file in sorted((tmp_path / "run/checkpoints").glob("step*.ckpt"))]
    same = [all(torch.equal(value, after[name]) for name, value in before.items()) for before, after in pairwise(saved)]
    assert same == [True, True, False], "steps 2 and 3 change nothing, step 4 does"
