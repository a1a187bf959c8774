"""`python -m avmae.predict ckpt=PATH input=FILE`: the most probable classes of a video."""

import json
from typing import Any

from avmae.command import command, print_table
from avmae.errors import InputError
from avmae.terminal import printable


@command("predict")
def main(config: dict[str, Any]) -> None:
    """Average the class probabilities over segments x crops and print the first few."""
    import torch

    from avmae.clip import ClipSpec
    from avmae.data.media import read_window
    from avmae.data.read import window_batch
    from avmae.models.classifier import Classifier
    from avmae.models.weights import load_model, read_checkpoint

    if config["format"] not in ("table", "json"):
        raise InputError(f"format={config['format']} is unknown; choose table or json")
    settings = read_checkpoint(config["ckpt"]).config
    model = load_model(config["ckpt"])
    if not isinstance(model, Classifier):
        raise InputError(
            f"{config['ckpt']} is a pretraining checkpoint and knows no classes; fine-tune it first: "
            "python -m avmae.train experiment=finetune_ucf101 ckpt=..."
        )
    clip, segments = ClipSpec(**settings["clip"]), config["segments"]
    probabilities = []
    for segment in range(segments):
        position = 0.5 if segments == 1 else segment / (segments - 1)
        window = read_window(config["input"], clip, position, clip.canvas)
        with torch.inference_mode():
            probabilities.append(model(window_batch(window, clip, config["crops"])).softmax(-1).mean(0))
    scores, labels = torch.stack(probabilities).mean(0).topk(min(config["top"], model.classes))
    top = [
        {"class": settings["class_names"][label], "label": label, "score": score}
        for score, label in zip(scores.tolist(), labels.tolist(), strict=True)
    ]
    if config["format"] == "json":
        print(json.dumps({"input": str(config["input"]), "has_audio": window.has_audio, "classes": top}, indent=2))
    else:
        print(f"{printable(config['input'])} ({'with sound' if window.has_audio else 'silent'})")
        print_table(["class", "score"], [[row["class"], f"{row['score']:.3f}"] for row in top])


if __name__ == "__main__":
    main()
