"""`python -m avmae.stats data=ucf101 data.root=DIR`: by what pixels and spectrograms should be normalised."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from avmae.cli.command import command
from avmae.cli.table import bar
from avmae.clip import ClipSpec
from avmae.runs.settings import spec

if TYPE_CHECKING:
    from avmae.data.statistics import Statistics


def stats(
    data: Mapping[str, Any],
    clip: ClipSpec | None = None,
    limit: int | None = 2000,
    seed: int = 0,
    progress: Callable[[Any], Iterable[Any]] = iter,
) -> "Statistics":
    """Means and standard deviations over training clips; see `avmae.data.statistics.measure`.

    Args:
        data: settings; see `avmae.data.build.build_data`.
        clip: shape of a window.
        limit: training clips to read, drawn at random; None for all.
        seed: of the drawing.
        progress: wraps the samples as they are read.
    """
    from avmae.data.build import build_data
    from avmae.data.statistics import measure

    return measure(build_data(data, clip or ClipSpec(), seed=seed), limit, seed, progress)


@command("stats")
def main(config: dict[str, Any]) -> None:
    """Print the statistics as settings of the clip."""

    def reading(samples: Any) -> Iterable[Any]:
        return bar("Reading", samples, len(samples))

    found = stats(config["data"], spec(ClipSpec, "clip", config["clip"]), config["limit"], config["seed"], reading)
    print(f"# over {found.clips} training clips")
    print(f"pixel_mean: [{', '.join(f'{x:.3f}' for x in found.pixel_mean)}]")
    print(f"pixel_std: [{', '.join(f'{x:.3f}' for x in found.pixel_std)}]")
    if found.mel_mean is None:
        print("# none of them has audio")
    else:
        print(f"mel_mean: {found.mel_mean:.2f}\nmel_std: {found.mel_std:.2f}")


if __name__ == "__main__":
    main()
