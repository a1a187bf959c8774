"""`python -m avmae.evaluate ckpt=PATH data.root=DIR`: what a checkpoint reaches on test clips."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from avmae.cli.command import command
from avmae.cli.config import check_writable, chosen_data
from avmae.cli.table import print_tables


def evaluate(
    ckpt: str | Path,
    data: Mapping[str, Any] | None = None,
    degrade: str | Sequence[str] = (),
    probe: bool = False,
    typed: Collection[str] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Score every test clip over segments x crops; returns what results.json holds, see `score_model`.

    Args:
        ckpt: of a classifier, or of a pretraining with audio.
        data: settings in which the data differ from the checkpoint's, as `{"root": DIR}`.
        degrade: also test degraded clips: `all`, or some as `["blur:8", "silence"]`.
        probe: also score `frozen_probes`, which read the training clips.
        typed: which of `data` were chosen, where the others are defaults; see `evaluation_data`.
        how: of `Inference`.
    """
    from avmae.evaluation.batches import Inference
    from avmae.evaluation.data import evaluation_data
    from avmae.evaluation.results import score_model
    from avmae.models.weights import load_with_config

    inference, (model, trained) = Inference(**how), load_with_config(ckpt)
    # Audio is read whatever the system, for results are told apart by whether a clip has it.
    read = evaluation_data(trained, data or {}, ["video", "audio"], ckpt, typed, test_only=not probe)
    return {"ckpt": str(ckpt), **score_model(model, read, degrade, inference, probe)}


@command("evaluate")
def main(config: dict[str, Any]) -> None:
    """Score one or several checkpoints."""
    from avmae.evaluation.results import result_files, result_tables, write_results

    ckpts = [str(ckpt) for ckpt in (config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]])]
    (own, output), (given, typed), results = result_files(ckpts, config["output"]), chosen_data(config["data"]), []
    # Before the hours that scoring may take.
    for file in {file for file in (*own, output) if config["output"] or file.parent.exists()}:
        check_writable(file)
    how = {key: config[key] for key in ("probe", "accelerator", "precision", "max_unreadable")}
    for ckpt in ckpts:
        results.append(evaluate(ckpt, given, config["degrade"] or (), typed=typed, progress=True, **how))
        print_tables(result_tables(results, last=len(results) == len(ckpts)))
    write_results(results, own, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
