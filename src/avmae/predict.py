"""`python -m avmae.predict ckpt=PATH input=FILE`: the most probable classes of a video."""

import json
from typing import Any

from avmae.cli.command import command
from avmae.cli.table import print_table
from avmae.errors import InputError, printable


@command("predict")
def main(config: dict[str, Any]) -> None:
    """Average the class probabilities over segments x crops and print the first few."""
    import torch

    from avmae.data.decode.window import read_window
    from avmae.data.read import window_batch
    from avmae.viewing.inference import load_classifier, top_classes

    if config["format"] not in ("table", "json"):
        raise InputError(f"format={config['format']} is unknown; choose table or json")
    for key in ("top", "segments", "crops"):
        if not isinstance(config[key], int) or config[key] < 1:
            raise InputError(f"{key}={config[key]} must be a whole number from 1")
    model, settings = load_classifier(config["ckpt"])
    clip, segments = model.clip, config["segments"]
    probabilities, has_audio = [], False
    for segment in range(segments):
        position = 0.5 if segments == 1 else segment / (segments - 1)
        window = read_window(config["input"], clip, position, clip.canvas)
        has_audio |= window.has_audio
        with torch.inference_mode():
            probabilities.append(model(window_batch(window, clip, config["crops"])).softmax(-1).mean(0))
    top = top_classes(torch.stack(probabilities).mean(0), settings["class_names"], config["top"])
    if config["format"] == "json":
        print(json.dumps({"input": str(config["input"]), "has_audio": has_audio, "classes": top}, indent=2))
    else:
        print(f"{printable(config['input'])} ({'with sound' if has_audio else 'silent'})")
        print_table(["class", "score"], [[row["class"], f"{row['score']:.3f}"] for row in top])


if __name__ == "__main__":
    main()
