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
    typed: Collection[str] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Score every test clip once over segments x crops; returns what results.json holds, see `score_model`.

    Args:
        ckpt: of a classifier, or of a pretraining with audio.
        data: settings in which the data differ from the checkpoint's, as `{"root": DIR}`.
        degrade: also test degraded clips: `all`, or some as `["blur:8", "silence"]`.
        typed: which of `data` were chosen, where the others are defaults; see `evaluation_data`.
        how: `accelerator`, `precision`, `max_unreadable` and `progress`, see `Inference`.
    """
    from avmae.evaluation.batches import Inference
    from avmae.evaluation.data import evaluation_data
    from avmae.evaluation.results import score_model
    from avmae.models.weights import load_model, read_checkpoint

    inference, model, settings = Inference(**how), load_model(ckpt), read_checkpoint(ckpt).config
    # Audio is read whatever the system, for results are told apart by whether a clip has it.
    datamodule = evaluation_data(settings, data or {}, ["video", "audio"], ckpt, typed, test_only=True)
    return {"ckpt": str(ckpt), **score_model(model, datamodule, degrade, inference)}


@command("evaluate")
def main(config: dict[str, Any]) -> None:
    """Score one or several checkpoints."""
    from avmae.evaluation.results import result_files, result_tables, write_results

    ckpts = [str(ckpt) for ckpt in (config["ckpt"] if isinstance(config["ckpt"], list) else [config["ckpt"]])]
    own, output = result_files(ckpts, config["output"])
    # Before the hours that scoring may take.
    for file in {file for file in (*own, output) if config["output"] or file.parent.exists()}:
        check_writable(file)
    (given, typed), results = chosen_data(config["data"]), []
    how = {key: config[key] for key in ("accelerator", "precision", "max_unreadable")}
    for ckpt in ckpts:
        results.append(evaluate(ckpt, given, config["degrade"] or (), typed, progress=True, **how))
        print_tables(result_tables(results, last=len(results) == len(ckpts)))
    write_results(results, own, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
