"""Tables, short texts and charts."""

from __future__ import annotations

import json
import sys

import pytest

from cpuinfer_helpers.course.choice import choose_model
from cpuinfer_helpers.display import (
    RESULT_MIME_TYPE,
    Displayed,
    Table,
    bar_chart,
    format_bytes,
    format_seconds,
    shorten,
)
from cpuinfer_helpers.errors import InputError

TABLE = Table(
    columns=("recipe", "time"),
    rows=(("eager", "390 ms"), ("traced & frozen", "9 ms")),
    title="BERT <base>",
    note="2 threads",
    numeric=("time",),
)


def test_text_is_aligned_to_the_left_and_numbers_to_the_right() -> None:
    assert str(TABLE).splitlines() == [
        "BERT <base>",
        "recipe             time",
        "---------------  ------",
        "eager            390 ms",
        "traced & frozen    9 ms",
        "2 threads",
    ]


def test_table_without_rows_shows_its_headings() -> None:
    assert str(Table(columns=("a", "b"), rows=())).splitlines() == ["a  b", "-  -"]


def test_row_of_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        Table(columns=("a", "b"), rows=(("only one",),)).as_text()


def test_html_escapes_everything_that_came_from_outside() -> None:
    html = Table(("<a>",), (("<script>alert('x')</script>",),), title="<t>", note="<n>").as_html()
    assert "<script>" not in html
    for text in ("&lt;a&gt;", "&lt;script&gt;", "&lt;t&gt;", "&lt;n&gt;"):
        assert text in html


def test_html_aligns_as_the_text_does() -> None:
    html = TABLE.as_html()
    assert html.count("text-align:right") == 3
    assert html.count("text-align:left") == 3


def test_mime_bundle_holds_text_html_and_the_whole_table() -> None:
    bundle = TABLE._repr_mimebundle_()
    assert bundle["text/plain"] == str(TABLE)
    assert bundle["text/html"] == TABLE.as_html()
    assert bundle[RESULT_MIME_TYPE] == {
        "kind": "Table",
        "title": "BERT <base>",
        "columns": ["recipe", "time"],
        "rows": [["eager", "390 ms"], ["traced & frozen", "9 ms"]],
    }
    json.dumps(bundle)


def test_long_cells_are_shortened_in_text_only() -> None:
    long = "word " * 60
    table = Table(("a",), ((long,),))
    assert max(map(len, str(table).splitlines())) == 100
    assert "…" in str(table)
    assert table._repr_mimebundle_()[RESULT_MIME_TYPE]["rows"] == [[long]]


def test_object_without_a_table_says_what_it_lacks() -> None:
    class Nothing(Displayed):
        pass

    with pytest.raises(TypeError, match=r"Nothing.*table\(\)"):
        str(Nothing())


@pytest.mark.parametrize(
    ("text", "short"),
    [("exactly10.", "exactly10."), ("eleven char", "eleven ch…"), ("two\n  lines", "two lines"), ("", "")],
)
def test_shorten(text: str, short: str) -> None:
    assert shorten(text, 10) == short


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (75.04, "75.0 s"),
        (10.0, "10.0 s"),
        (9.994, "9.99 s"),
        (1.0, "1.00 s"),
        (0.9999, "1.00 s"),
        (0.3904, "390 ms"),
        (0.1, "100 ms"),
        (0.0996, "99.6 ms"),
        (0.00123, "1.23 ms"),
        (0.001, "1 ms"),
        (0.0009996, "1 ms"),
        (0.000999, "999 µs"),
        (12.34e-6, "12.3 µs"),
        (0.0, "0 µs"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(2**30, "1.0 GiB"), (2**30 - 2**20, "1023.0 MiB"), (25 * 2**30, "25.0 GiB"), (0, "0.0 MiB")]
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def _chart():
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    return bar_chart(["eager", "traced"], [4.0, 2.0], [3.5, 1.0], [5.0, 2.5], unit="milliseconds", title="BERT")


def test_bar_chart_has_a_bar_and_an_interval_for_each_label() -> None:
    from matplotlib.figure import Figure

    figure = _chart()
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert [patch.get_width() for patch in axes.patches] == [4.0, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["eager", "traced"]
    assert axes.yaxis_inverted()
    assert (axes.get_xlabel(), axes.get_title()) == ("milliseconds", "BERT")
    (intervals,) = axes.collections
    ends = [tuple(segment[:, 0]) for segment in intervals.get_segments()]
    assert ends == [(3.5, 5.0), (1.0, 2.5)]


def test_bar_chart_without_intervals_has_bars_only() -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    (axes,) = bar_chart(["1-64", "65-128"], [3, 7], unit="questions").axes
    assert [patch.get_width() for patch in axes.patches] == [3, 7]
    assert list(axes.collections) == []


def test_long_title_of_a_bar_chart_is_not_cut_off() -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    figure = bar_chart(["a"], [1.0], unit="ms", title="BertForQuestionAnswering " * 6)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.title.get_text().count("BertForQuestionAnswering") == 6
    assert axes.title.get_window_extent().x0 >= 0
    assert axes.title.get_window_extent().x1 <= figure.bbox.x1


def test_bar_chart_is_a_picture_in_a_notebook() -> None:
    """IPython knows a figure only once pyplot has been imported, so the chart must bring its picture along."""
    picture = _chart()._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 1000


OFFERED = ("question-answering", "text-classification")


@pytest.fixture(params=["widgets", "plain text"])
def choice(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "widgets":
        pytest.importorskip("ipywidgets")
    else:
        # None in its place is how Python marks a module that cannot be imported.
        monkeypatch.setitem(sys.modules, "ipywidgets", None)
    return choose_model(OFFERED)


def test_the_first_model_is_chosen_until_somebody_chooses(choice) -> None:
    assert choice.value == "question-answering"


@pytest.mark.parametrize("chosen", ["text-classification", "owner/name", "./folder"])
def test_a_choice_can_be_assigned_and_taken_back(choice, chosen: str) -> None:
    choice.value = chosen
    assert choice.value == chosen
    assert chosen in choice._repr_mimebundle_()["text/plain"]
    choice.value = "question-answering"
    assert choice.value == "question-answering"


def test_text_goes_before_the_drop_down_and_spaces_do_not_count() -> None:
    pytest.importorskip("ipywidgets")
    choice = choose_model(OFFERED)
    dropdown, text = choice._both.children
    dropdown.value = "text-classification"
    assert choice.value == "text-classification"
    text.value = " owner/name "
    assert choice.value == "owner/name"
    text.value = "  "
    assert choice.value == "text-classification"


def test_a_notebook_shows_the_widgets() -> None:
    pytest.importorskip("ipywidgets")
    assert "application/vnd.jupyter.widget-view+json" in choose_model(OFFERED)._repr_mimebundle_()


def test_without_widgets_every_option_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    lines = str(choose_model(OFFERED)).splitlines()
    assert lines[2].split() == ["question-answering", "chosen"]
    assert lines[3].split() == ["text-classification"]
    assert ".value" in lines[-1]


@pytest.mark.parametrize("options", [[], "question-answering"])
def test_a_choice_needs_a_list_of_options(options) -> None:
    with pytest.raises(InputError, match="at least one name"):
        choose_model(options)


def test_dollar_signs_and_lone_surrogates_in_names_are_shown_as_they_are():
    from cpuinfer_helpers.display import Table, bar_chart, operator_columns

    name = "my$model_{$ \ud800"
    table = Table(("name", name), ((name, "1"),), title=name, note=name)
    assert r"my$model_{$ \ud800" in str(table)
    (str(table) + table.as_html()).encode("utf-8")
    for figure in (
        bar_chart([name], [1.0], unit=name, title=name),
        operator_columns([([name], name, True)], title=name),
    ):
        figure.canvas.draw()
        title = figure.axes[0].get_title()
        assert title == r"my\$model_{\$ \ud800"
