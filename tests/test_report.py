"""The page of a comparison: whole, safe, of one file, and true to the rows."""

import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import pytest
import reports

from minigrad.compare import Comparison, picture, report
from minigrad.compare.report import bars, themed, views
from minigrad.compare.rows import Fact

VOID = {"meta", "link", "br", "path", "use", "rect", "line"}
pytest.importorskip("matplotlib", reason="the page's curves need matplotlib: pip install minigrad[plot]")


class Page(HTMLParser):
    """The elements of a page; it fails where they are not closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def made():
    return reports.comparison()


@pytest.fixture(scope="module")
def text(made):
    return report.render(made)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_has_every_chapter_with_what_it_says(made, page):
    assert [attributes["id"] for attributes in page.all("section")] == list(made.chapters)
    for chapter in made.chapters.values():
        for words in (chapter.title, chapter.question, *chapter.findings, *chapter.notes):
            assert words in page.text
    targets = [attributes["href"] for attributes in page.all("a")]
    assert targets == [f"#{name}" for name in made.chapters]


def test_the_page_begins_with_the_answers():
    made = reports.comparison(rows=0)
    peaks = {"peak arithmetic, float32": (1e11, 5e13), "memory bandwidth": (2e10, 4e12)}
    for table, device, label, place in (("tables", "cpu", None, 0), ("recorded", "cuda:0", reports.LABEL, 1)):
        getattr(made.chapters["machine"], table)["facts"] = [
            Fact(device=device, recorded=label, what=what, value=rates[place])
            for what, rates in peaks.items()
        ]
    sentence = (
        "cuda:0 (recorded) does 500 times as many operations a second as this processor, and its memory "
        "delivers 200 times"
    )
    assert made.answers == {"Why is a GPU faster?": f"{sentence} as much."}
    assert sentence in Page(report.render(made)).text
    assert Comparison(made.machine, "2026-11-26").answers == {}


def test_the_page_needs_no_other_file_and_no_network(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert {attributes.get("type") for attributes in page.all("script")} == {"application/json", None}


def test_identifiers_are_unique_and_references_lead_somewhere(text, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:xlink:)?href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert used and {one or other for one, other in used} <= set(ids)


def test_each_picture_comes_in_two_widths_in_the_page_s_colours(text, page):
    drawn = len(views.PICTURES)
    assert [attributes.get("class") for attributes in page.all("div")].count("wide") == drawn
    assert [attributes.get("class") for attributes in page.all("div")].count("narrow") == drawn
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 2 * drawn
    for drawing in pictures:
        assert not set(re.findall(r"#[0-9a-f]{6}\b", drawing)) & set(themed.COLOURS.values())
        assert set(re.findall(r"var\(--([\w-]+)\)", drawing)) <= set(themed.COLOURS)
    for role in themed.COLOURS:
        assert text.count(f"--{role}:") == 3  # light, dark, paper


def test_what_was_recorded_elsewhere_says_so(made, page):
    assert page.text.count(f"recorded on {reports.LABEL}") >= 3
    assert f"Recorded elsewhere, not on this machine: {reports.LABEL}" in page.text
    here = Page(report.render(reports.comparison(recorded=False)))
    assert "recorded on" not in here.text and "Imaginary" not in here.text


def test_the_page_holds_the_results(made, text):
    held = re.search(r'<script type="application/json" id="results">(.*?)</script>', text, re.DOTALL)[1]
    assert Comparison.from_dict(json.loads(held)).to_json() == made.to_json()


def test_words_from_outside_cannot_become_elements():
    made = reports.comparison()
    bad = "</script><script>alert(1)</script>"
    rows = made.chapters["ladder"].tables["records"]
    rows[0] = replace(rows[0], rung=bad, adds=bad)
    rows[1] = replace(rows[1], failure=bad, seconds=None, rate=None)
    made[:] = rows
    made.chapters["size"].findings = [bad]
    made.notes.append(bad)
    text = report.render(made)
    assert bad not in text and text.count(escape(bad)) >= 5
    assert len(Page(text).all("script")) == 2


def test_a_rung_that_failed_is_told_and_not_drawn(made):
    made = reports.comparison(recorded=False)
    rows = made.chapters["ladder"].tables["records"]
    rows[2] = replace(rows[2], rung="wrong_one", failure="its result is wrong", seconds=None, rate=None)
    made[:] = rows
    text = report.render(made)
    assert "wrong_one on cpu: its result is wrong" in text
    assert "<b>wrong_one</b>" not in text


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_tables_and_single_rows(rows):
    page = Page(report.render(reports.comparison(rows=rows)))
    assert len(page.all("section")) == len(reports.CHAPTERS)


def test_numbers_that_are_missing():
    Page(report.render(reports.without_numbers(reports.comparison())))


def test_an_interrupted_comparison_shows_the_chapters_that_it_has():
    made = reports.comparison()
    made.interrupted = True
    made.chapters = dict(list(made.chapters.items())[:2])
    page = Page(report.render(made))
    assert "Interrupted" in page.text
    assert [attributes["id"] for attributes in page.all("section")] == ["machine", "ladder"]


def test_a_busy_machine_is_told_on_the_page():
    made = reports.comparison()
    for load, told in ((0.2, False), (2.5, True), (None, False)):
        made.machine |= {"load": load, "cores": 2}
        assert ("The machine was busy when this began (load 2.5 on 2 cores)" in report.render(made)) == told


def test_without_matplotlib_the_page_says_what_its_curves_need(monkeypatch, tmp_path):
    monkeypatch.setattr(picture, "is_available", lambda: False)
    made = reports.comparison()
    assert report.save(made, tmp_path) == [tmp_path / "report.html"]
    page = Page((tmp_path / "report.html").read_text())
    assert views.NO_PICTURES in page.text and page.all("svg") == []
    assert len(page.all("section")) == len(made.chapters)


def test_save_writes_the_page_and_its_pictures(made, tmp_path):
    paths = report.save(made, tmp_path)
    names = [f"{name}.{ending}" for name in views.PICTURES for ending in ("png", "svg")]
    assert [path.name for path in paths] == ["report.html", *names]
    for path in paths[1:]:
        assert path.read_bytes().startswith((b"\x89PNG", b"<?xml"))


@pytest.mark.parametrize("name", ["ladder", *views.PICTURES])
def test_draw_returns_a_figure(made, name):
    assert made.draw(name).get_axes()


def test_draw_says_what_it_cannot_draw(made):
    with pytest.raises(ValueError, match="are ladder, roofline, size, batch, network; got 'pie'"):
        made.draw("pie")
    for name in ("ladder", "roofline"):
        with pytest.raises(ValueError, match=f"nothing was measured for the picture {name}"):
            Comparison(made.machine, made.date).draw(name)


# ---- bars -------------------------------------------------------------------------------------------------


def shares(text):
    return [float(share) for share in re.findall(r"--share:([\d.]+)", text)]


def test_lengths_of_bars():
    group = bars.Group("", [bars.Bar(str(v), "", [(v, str(v), "cpu")]) for v in (1.0, 10.0, 100.0)])
    assert shares(bars.chart([group])) == [0.01, 0.1, 1.0]
    low, middle, high = shares(bars.chart([group], logarithmic=True))
    assert high == 1 and 0 < low < middle
    assert middle - low == pytest.approx(high - middle, abs=2e-4)  # equal factors, equal gaps


def test_bars_of_one_length_and_of_none():
    one = bars.Group("here", [bars.Bar("a", "", [(5.0, "5", "cpu")])])
    assert shares(bars.chart([one])) == shares(bars.chart([one], logarithmic=True)) == [1.0]
    zero = bars.Group("", [bars.Bar("a", "", [(0.0, "0", "cpu")])])
    assert bars.chart([zero]) == bars.chart([]) == ""
    assert shares(bars.chart([one, zero], logarithmic=True)) == [1.0, 0.0]
