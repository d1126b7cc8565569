"""The report's markdown files as one HTML page that stands alone: plots inside, no script, nothing is fetched.

Markdown is read by markdown-it-py (CommonMark and tables) with raw HTML off, so that names can hold any sign.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

STYLE = """
body { margin: 0 auto; padding: 1.5rem; max-width: 62rem; color: #1b1b1b; background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.8rem; border-bottom: 2px solid #0072b2; padding-bottom: .3rem; }
h2 { font-size: 1.3rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin-top: 1.6rem; }
article + article { margin-top: 4rem; }
nav { font-size: .9rem; color: #444; } nav a { margin-right: 1.2rem; } a { color: #005a8d; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #e3e3e3; vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; } tbody tr:hover { background: #f3f7fa; }
td:first-child { min-width: 8rem; overflow-wrap: anywhere; } td + td { white-space: nowrap; }
figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
figcaption { font-size: .85rem; color: #444; }
code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px; font-size: .88em; overflow-wrap: anywhere; }
pre { background: #f2f2f2; padding: .8rem 1rem; overflow-x: auto; } pre code { padding: 0; background: none; }
@media print { body { max-width: none; } article + article { break-before: page; } .wide { overflow: visible; } }
""".strip()

LONE_IMAGE = re.compile(r"<p>(<img [^>]*>)</p>")
"""An image that is a paragraph of its own."""


def as_page(articles: Mapping[str, str], *, title: str, folder: Path) -> str:
    """Return one HTML page of several markdown files.

    Args:
        articles: {file name: its markdown}, at least one; links from one to another stay inside the page.
        title: of the page.
        folder: where the images lie that they show; a missing one raises ``FileNotFoundError``.
    """
    parts = [f'<article id="{_place(name)}">\n{_as_html(articles, name, folder)}</article>' for name in articles]
    links = [f'<a href="#{_place(name)}">{_label(name)}</a>' for name in articles]
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>\n{STYLE}\n</style>",
    ]
    body = [f"<nav>{''.join(links)}</nav>", *parts]
    lines = ["<!doctype html>", '<html lang="en">', "<head>", *head, "</head>", "<body>", *body, "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def _as_html(articles: Mapping[str, str], name: str, folder: Path) -> str:
    """Return the article ``name``; lone images become figures with their text below."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    env = {"articles": articles, "folder": folder}
    for rule in (_image, _link_open, _table_open, _table_close):
        parser.add_render_rule(rule.__name__[1:], rule)
    rendered = parser.render(articles[name], env)
    return LONE_IMAGE.sub(lambda found: f"<figure>{found[1]}{_caption(found[1])}</figure>", rendered)


def _caption(image: str) -> str:
    """Return the caption of an ``img`` element: its alternative text, which is HTML already."""
    found = re.search(r'alt="([^"]*)"', image)
    return f"<figcaption>{found[1]}</figcaption>" if found else ""


def _image(self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]) -> str:
    """Put the image itself into the page."""
    token = tokens[index]
    content = base64.b64encode((env["folder"] / str(token.attrs["src"])).read_bytes()).decode("ascii")
    text = html.escape(self.renderInlineAsText(token.children or [], options, {}))
    return f'<img src="data:image/png;base64,{content}" alt="{text}">'


def _link_open(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]
) -> str:
    """Lead a link to another article to its place in the page."""
    token = tokens[index]
    target = str(token.attrs["href"])
    if target in env["articles"]:
        token.attrSet("href", f"#{_place(target)}")
    return self.renderToken(tokens, index, options, env)


def _table_open(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]
) -> str:
    return '<div class="wide"><table>\n'


def _table_close(
    self: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: MutableMapping[str, Any]
) -> str:
    return "</table></div>\n"


def _place(name: str) -> str:
    """Return the name of an article's place in the page.

    >>> _place("model_card.md")
    'model-card'
    """
    return name.removesuffix(".md").replace("_", "-")


def _label(name: str) -> str:
    """Return what an article is called.

    >>> _label("model_card.md")
    'Model card'
    """
    return _place(name).replace("-", " ").capitalize()
