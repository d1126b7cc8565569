"""The page that stands alone: nothing is fetched, names are shown as they are."""

from __future__ import annotations

import base64
import html
import re
from html.parser import HTMLParser

import pytest

from fairquant.report.cells import as_markdown, escape
from fairquant.report.page import as_page
from fairquant.report.write import write_report

VOID = {"meta", "img", "br", "hr"}
NASTY = (
    "a|b*_`c`",
    "<script>alert(1)</script>",
    "x & y &lt; z",
    "[l](http://e.org) ![i](n.png)",
    "~s~ $m$ \\ \"q\" 'r'",
    "a #1 ##",
)


class Balanced(HTMLParser):
    """Raises unless every element is closed in order; collects elements, attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.values, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.values += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_images_are_inside_with_their_text_below(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG bytes")
    page = as_page({"report.md": '# R\n\n![each "group" & <all>](a.png)\n'}, title="R", folder=tmp_path)
    source, text = re.search(r'<figure><img src="data:image/png;base64,([^"]+)" alt="([^"]+)">', page).groups()
    assert base64.b64decode(source) == b"\x89PNG bytes"
    assert html.unescape(text) == 'each "group" & <all>'
    assert f"<figcaption>{text}</figcaption></figure>" in page


def test_a_missing_image_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        as_page({"report.md": "![x](absent.png)"}, title="R", folder=tmp_path)


def test_links_between_articles_stay_inside(tmp_path):
    articles = {"report.md": "[card](model_card.md) [log](training.log)", "model_card.md": "# Card"}
    page = parsed(as_page(articles, title="R", folder=tmp_path))
    assert page.values == ["#report", "#model-card", "#model-card", "training.log"]


@pytest.mark.parametrize("name", NASTY)
def test_any_name_is_shown_as_it_is(name, tmp_path):
    text = f"# {escape(name)}\n\n- group {escape(name)}\n\n" + as_markdown([("group", "n"), (name, "1")])
    page = as_page({"report.md": text}, title=name, folder=tmp_path)
    found = parsed(page)
    assert {"script", "em", "strong", "del", "a", "img", "code"} & set(found.seen) == {"a"}  # that of the navigation
    shown = "".join(found.text)
    assert shown.count(name) == 4  # title, heading, item, cell
    assert found.values == ["#report"]


def test_the_page_of_a_run(full_inputs, tmp_path):
    write_report(full_inputs, tmp_path / "report")
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    found = parsed(page)
    assert page.startswith('<!doctype html>\n<html lang="en">')
    assert found.seen.count("img") == found.seen.count("figure") == 6
    assert "script" not in found.seen
    assert "Model card: FairQuant report" in "".join(found.text)
    inside = ("#", "data:", "https://arxiv.org/")
    assert [value for value in found.values if not value.startswith(inside)] == [
        "fairquant_report.txt", "bit_distribution.csv", "size_report.txt", "bitwidth_percentages.txt", "training.log",
        "groups.csv", "classes.csv", "group_table.tex", "export_table.tex",
    ]  # fmt: skip
