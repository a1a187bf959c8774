"""The model card of an exported model, for the Hugging Face Hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from avmae.data.paths import OR_PATHS, PATHS
from avmae.evaluation.metrics import metric_text
from avmae.models.hub import CARD, on_hub, push
from avmae.runs.history import flat

SCORES = ("results.json", "summary.json")
"""What a run leaves that has scores, the best first."""


def publish(folder: Path, ckpt: str | Path, repository: str) -> str:
    """Write the card of an exported folder, take the paths of this machine out of its config, and push it to the Hub.

    Args:
        folder: that `avmae.export` wrote; changed in place.
        ckpt: that it was exported from, in whose run's folder the scores lie.
        repository: its name on the Hub.

    Returns:
        Its address.

    Raises:
        InputError: see `avmae.models.hub.push`.
    """
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    config = content["avmae"]
    if "data" in config:
        names_file = {
            "manifest",
            *(key for key in OR_PATHS if key in PATHS or isinstance(config["data"].get(key), str)),
        }
        config["data"] = {key: None if key in names_file else value for key, value in config["data"].items()}
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    (folder / CARD).write_text(card(config, _scores(ckpt), repository), "utf-8")
    return push(folder, repository)


def card(config: Mapping[str, Any], scores: Mapping[str, float], repository: str) -> str:
    """The card: what the model is, data, recipe, scores and limits.

    Args:
        config: of the checkpoint.
        scores: by name; empty where the run left none.
        repository: its name on the Hub.
    """
    model, size, clip = (config[key] for key in ("model", "size", "clip"))
    classifies = config["task"] == "classify"
    tags = ["video-classification" if classifies else "masked-autoencoder", *model["modalities"], "avmae"]
    head = {"library_name": "avmae", "tags": list(dict.fromkeys(tags))}
    if classifies:
        head["pipeline_tag"] = "video-classification"
    seconds = clip["frames"] * clip["stride"] / clip["fps"]
    data = config.get("data", {})
    source = data.get("source", "not recorded")
    chosen = ", ".join(f"{key}={value}" for key, value in data.items() if value is not None and key != "source")
    recipe = flat({key: value for key, value in config.get("recipe", {}).items() if key != "mask" or not classifies})
    lines = [
        f"# {repository.rpartition('/')[2]}",
        "",
        f"A {'classifier' if classifies else 'masked autoencoder'} made with avmae: system `{model['name']}`, size "
        f"`{size['name']}`, {' and '.join(model['modalities'])}. It takes {clip['frames']} frames of "
        f"{clip['size']} x {clip['size']} pixels, a window of {seconds:.2f} s.",
        "",
        "```python",
        "import avmae",
        "",
        f'model = avmae.load_model("hf://{repository}")',
        'tokens = model.encode(**avmae.read_clip("video.mp4", model.clip))',
        "```",
        "",
        "## Data",
        "",
        f"Trained on `{source}`: {chosen}" if chosen else f"Trained on: {source}",
    ]
    if classifies:
        lines += ["", f"{config['classes']} classes: {', '.join(map(str, config['class_names']))}."]
    lines += ["", "## Recipe", "", *(f"- `{key}={value}`" for key, value in recipe.items())]
    lines += [] if recipe else ["Not recorded."]
    lines += ["", "## Scores", "", *(f"- {name}: {metric_text(name, value)}" for name, value in scores.items())]
    lines += [] if scores else ["None were recorded with this checkpoint."]
    lines += [
        "",
        "## Limits",
        "",
        "It was trained and scored on the data named above; on other cameras, places or sounds it may do worse, and "
        "the scores say nothing about those." + (" It knows the classes above and no others." if classifies else ""),
    ]
    if "audio" in model["modalities"]:
        lines.append("Clips without audio are taken as such; a wrong or shifted soundtrack can change what it says.")
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n" + "\n".join(lines) + "\n"


def _scores(ckpt: str | Path) -> dict[str, float]:
    """What the run of a checkpoint has left: of `avmae.evaluate`, or else its last metrics."""
    if on_hub(ckpt):
        return {}
    path = Path(ckpt).expanduser().absolute()
    for name in SCORES:
        file = (path.parents[1] if path.parent.name == "checkpoints" else path.parent) / name
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            return {key: value for key, value in found.items() if isinstance(value, float)}
    return {}
