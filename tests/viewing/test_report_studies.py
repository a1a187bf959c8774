"""What the report shows of a study."""

import json
import re
from pathlib import Path

import pytest
from pages import report, study_rows

from avmae.errors import InputError
from avmae.runs.history import read_study
from avmae.viewing.plots import study_figure, study_points, write_png


def test_a_study_shows_means_and_deviations_over_seeds(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"rows": [*study_rows()]}))
    page = report(tmp_path)
    part = page.after("Study: top1, split all")
    assert re.findall(r"<figcaption>(.*?)</", part) == ["blur", "noise"]
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in part.split("<tbody>")[1].split("<tr>")[1:]]
    assert rows[0] == ["clean", "61.0% ± 1.4%", "71.0% ± 1.4%"]
    assert rows[2] == ["blur 2", "41.0% ± 1.4%", "51.0% ± 1.4%"]
    assert len(rows) == 4
    assert ">50.0%<" in page.after("Study: top1, split silent")


def test_a_studys_figure_has_a_panel_a_degradation_and_a_line_a_system(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"rows": [*study_rows()]}))
    rows = [row for row in read_study(tmp_path / "study.json") if row["split"] == "all"]
    figure = study_figure(rows, "top1")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["blur", "noise"]
    assert len({axes.get_ylim() for axes in panels}) == 1, "one scale"
    (container, _) = panels[0].containers
    line = container.lines[0]
    assert list(line.get_xdata()) == [0, 1, 2]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["clean", "1", "2"]
    assert list(line.get_ydata()) == pytest.approx([0.61, 0.51, 0.41])
    # Rows of several conditions are never averaged into one line.
    assert len({point.line for point in study_points(read_study(tmp_path / "study.json"), "top1")["blur"]}) == 3
    write_png(figure, tmp_path / "study.png")
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "is no study"),
        ('{"rows": []}', "holds no rows"),
        ('{"rows": [{"system": "a"}]}', "row 0 has no degradation"),
        ('{"rows": [3]}', "row 0 has no system"),
    ],
)
def test_a_wrong_study_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(InputError, match=message):
        report(tmp_path)
