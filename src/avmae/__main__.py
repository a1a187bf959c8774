"""`avmae` and `python -m avmae`: which commands there are, and each of them by its name."""

import difflib
import runpy
import signal
import sys

import avmae

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
    """Run a command as ``python -m avmae.COMMAND`` does, or print a line for each."""
    command, arguments = sys.argv[1] if len(sys.argv) > 1 else "--help", sys.argv[2:]
    if command in COMMANDS:
        # Until the command has its own handling, Ctrl-C may come while it imports.
        sys.excepthook = avmae.show_error
        sys.argv[1:] = arguments
        # Its name is then the main module's, which processes that it starts look for, and a run records.
        runpy.run_module(f"avmae.{command}", run_name="__main__", alter_sys=True)
    elif command == "--version":
        print(f"avmae {avmae.__version__}")
    elif command in ("-h", "--help"):
        # Of `head`, as programs of the shell do.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for name, purpose in COMMANDS.items():
            print(f"avmae {name:<12} {purpose}")
        print("\nEach explains itself: avmae train -h. The same by module: python -m avmae.train")
    else:
        near = difflib.get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean avmae {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        print(f"error: unknown command {command}; {hint}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
