"""Markdown as HTML that is safe to show: a program, run for one text at a time.

markdown-it-py makes HTML of it, and nh3 (ammonia) lets through what is on its lists. It runs as a
process of its own, because a text can be made so that this takes for ever.

stdin: a JSON object, the fields of `Source`. stdout: the HTML.
"""

from __future__ import annotations

import json
import posixpath
import re
import sys
from dataclasses import dataclass
from urllib.parse import unquote, urlencode, urlsplit

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token

_TAGS = {
    *("h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "pre", "code", "blockquote", "ul", "ol", "li"),
    *("em", "strong", "del", "s", "b", "i", "sub", "sup", "kbd", "details", "summary", "div"),
    *("table", "thead", "tbody", "tr", "th", "td", "a", "img", "dl", "dt", "dd", "span"),
}
_ATTRIBUTES = {
    "a": {"href", "title"},
    "img": {"src", "alt", "title", "width", "height"},
    "ol": {"start"},
    **{f"h{level}": {"id"} for level in range(2, 7)},
}
_SCHEMES = {"http", "https", "mailto"}
_ID = "readme-"
"""Before every id, so that none is one of the page's own."""
_NOT_IN_A_SLUG = re.compile(r"[^\w\- ]")
_WITHOUT_ALT = re.compile(r"<img(?![^>]* alt=)")


@dataclass(frozen=True, slots=True)
class Source:
    """A text, and where it is: `folder` of the ref `ref` of the repository at `page`."""

    text: str
    page: str
    ref: str
    folder: str


def to_html(source: Source) -> str:
    """The HTML. Links within the repository lead to its pages; images elsewhere are left out."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(source.text)
    _prepare_headings(tokens)
    unsafe = parser.renderer.render(tokens, parser.options, {})
    # HTML may have headings of its own; the page has the first one already.
    unsafe = re.sub(r"<(/?)h1\b", r"<\1h2", unsafe, flags=re.IGNORECASE)

    def attribute(tag: str, name: str, value: str) -> str | None:
        if name == "id":
            return value if value.startswith(_ID) else None
        if name == "href":
            return _link(source, value)
        return _image(source, value) if name == "src" else value

    clean = nh3.clean(
        unsafe,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        attribute_filter=attribute,
        url_schemes=_SCHEMES,
        link_rel="nofollow noopener noreferrer",
    )
    # What may be wider than the page scrolls, by keyboard as well.
    clean = clean.replace("<pre>", '<pre tabindex="0">')
    clean = clean.replace("<table>", '<div class="wide-table" tabindex="0"><table>')
    return _WITHOUT_ALT.sub('<img alt=""', clean.replace("</table>", "</table></div>"))


def _prepare_headings(tokens: list[Token]) -> None:
    """An id for each, as links to it expect; one level further down, for the page has a title."""
    seen: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if token.type not in ("heading_open", "heading_close"):
            continue
        token.tag = f"h{min(6, int(token.tag[1]) + 1)}"
        if token.type == "heading_open":
            slug = _slug(tokens[number + 1].content)
            count = seen[slug] = seen.get(slug, -1) + 1
            token.attrSet("id", _ID + (f"{slug}-{count}" if count else slug))


def _slug(text: str) -> str:
    return _NOT_IN_A_SLUG.sub("", text.strip().lower()).replace(" ", "-")


def _link(source: Source, url: str) -> str | None:
    if url.startswith("#"):
        return f"#{_ID}{url[1:].lower()}"
    path = _inside(source, url)
    if path is None:
        return url if _leads_elsewhere(url) else None
    return f"{source.page}/file?{urlencode({'ref': source.ref, 'path': path})}"


def _image(source: Source, url: str) -> str | None:
    path = _inside(source, url)
    if path is None:
        return None
    return f"{source.page}/image?{urlencode({'ref': source.ref, 'path': path})}"


def _leads_elsewhere(url: str) -> bool:
    try:
        return urlsplit(url.strip()).scheme.lower() in _SCHEMES
    except ValueError:
        return False


def _inside(source: Source, url: str) -> str | None:
    """The path in the repository that a relative URL names; None if it names another place."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        return None
    if parts.scheme or parts.netloc or not parts.path:
        return None
    path = unquote(parts.path)
    folder = "" if path.startswith("/") else source.folder
    whole = posixpath.normpath(posixpath.join(folder, path.lstrip("/")))
    return None if whole.startswith("..") else whole


if __name__ == "__main__":
    print(to_html(Source(**json.load(sys.stdin))))
