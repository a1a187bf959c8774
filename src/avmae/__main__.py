"""`python -m avmae`: which commands there are."""

import signal

COMMANDS = {
    "prepare": "check every file of a data set by decoding it; write a packed copy",
    "stats": "mean and standard deviation of pixels and spectrograms, for the clip config",
    "train": "pretrain, fine-tune or probe",
    "evaluate": "score a checkpoint on test clips",
    "predict": "the most probable classes of a video",
    "reconstruct": "see what pretrained models make of videos",
    "study": "train and test several systems, clean and degraded: does audio help?",
    "report": "write a page about runs and sweeps: curves, results, classes, reconstructions",
    "demo": "the same on a local web page, with what the audio attends to",
    "features": "write an embedding of every clip",
    "export": "write a model for use elsewhere",
    "dashboard": "set up a W&B dashboard",
}


def main() -> None:
    """Print a line for each command."""
    # Of `head`, as programs of the shell do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for name, purpose in COMMANDS.items():
        print(f"python -m avmae.{name:<12} {purpose}")
    print("\nEach explains itself: python -m avmae.train -h")


if __name__ == "__main__":
    main()
