"""`python -m avmae.predict ckpt=PATH input=FILE`: the most probable classes of a video, or of all in a folder."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avmae.cli.command import command
from avmae.cli.config import check_writable
from avmae.cli.table import bar, print_tables
from avmae.errors import InputError, MediaError, printable

if TYPE_CHECKING:
    from avmae.viewing.prediction import Prediction


def predict(ckpt: str | Path, input: str | Path, *, top: int = 5, segments: int = 5, crops: int = 3) -> "Prediction":
    """Average a video's class probabilities over evenly spaced windows and crops of each; return the first few.

    Raises:
        InputError: a number is out of range, the checkpoint is no classifier, or the video cannot be read.
    """
    from avmae.viewing.prediction import predict_files

    (_, said), *_ = predict_files(ckpt, [Path(input)], top, segments, crops)
    if isinstance(said, MediaError):
        raise said
    return said


@command("predict")
def main(config: dict[str, Any]) -> None:
    """Predict; print a table or JSON, and write CSV or JSON."""
    from avmae.viewing import prediction

    if config["format"] not in ("table", "json"):
        raise InputError(f"format={config['format']} is unknown; choose table or json")
    source, output = Path(config["input"]).expanduser(), config["output"] and Path(config["output"]).expanduser()
    if output:
        prediction.check_format(output)
        check_writable(output)
    files = prediction.videos_of(source)
    said = prediction.predict_files(config["ckpt"], files, *(config[key] for key in ("top", "segments", "crops")))
    found = dict(bar("predicting", said, len(files)) if len(files) > 1 else said)
    unread = [answer for answer in found.values() if isinstance(answer, MediaError)]
    if len(unread) == len(found):
        raise unread[0]
    for error in unread:
        print(f"left out: {printable(error)}", file=sys.stderr)
    if config["format"] == "json":
        print(json.dumps(prediction.as_json(found, source), indent=2))
    else:
        print_tables(prediction.tables(found, source))
    if output:
        prediction.write_predictions(found, output)
        print(f"wrote {output}")


if __name__ == "__main__":
    main()
