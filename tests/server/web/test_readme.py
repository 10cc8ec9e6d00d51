"""READMEs as HTML: what hostile ones cannot do."""

from __future__ import annotations

import re

import pytest

from artifactfs.server.web.markdown import Source, to_html


def html(text: str, folder: str = "docs") -> str:
    return to_html(Source(text, "/ui/ns/team/demo", "main", folder))


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](  JaVaScRiPt:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "<a href='vbscript:x'>x</a>",
        "<svg><script>alert(1)</script></svg>",
        "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
        "<iframe src='https://evil.example'></iframe>",
        "<form action='/ui/logout' method=post><button>Win</button></form>",
        "<input name=form_key>",
        "<style>* { display: none }</style>",
        "<p style='position: fixed'>over everything</p>",
        "<p id=copied class=unseen>x</p>",
        "<base href='https://evil.example'>",
        "<meta http-equiv=refresh content='0;url=https://evil.example'>",
        "<object data=x></object><embed src=x>",
        "<!--><img src=x onerror=alert(1)>-->",
        "<a href='//evil.example/x'>x</a>",
        "![x](https://evil.example/pixel.png)",
        "<img srcset='https://evil.example/x 2x'>",
        '<a href="/x" onclick="alert(1)" target="_blank">x</a>',
    ],
)
def test_nothing_runs_and_nothing_is_fetched_elsewhere(text: str) -> None:
    shown = html(text).lower()
    kinds = "script|iframe|form|input|button|style|svg|math|base|meta|object|embed"
    assert not re.search(rf"<({kinds})\b", shown)
    assert not re.search(r"""<[^>]*\s(on\w+|style|class|srcset|target)=""", shown)
    assert not re.search(r"""(src|href)="(?!/ui/ns/team/demo/|https?:|#readme-)""", shown)
    assert not re.search(r'src="https?:', shown) and 'href="//' not in shown
    assert 'id="copied"' not in shown


def test_links_lead_to_the_pages_of_the_repository() -> None:
    at = "/ui/ns/team/demo"
    assert f'href="{at}/file?ref=main&amp;path=docs%2Fb.md"' in html("[x](b.md)")
    assert f'href="{at}/file?ref=main&amp;path=a.md"' in html("[x](../a.md#there)")
    assert f'href="{at}/file?ref=main&amp;path=src%2Fx.py"' in html("[x](/src/x.py)")
    assert "href" not in html("[x](../../../etc/passwd)")
    assert f'src="{at}/image?ref=main&amp;path=docs%2Flogo.png"' in html("![Logo](logo.png)")
    outside = html("[x](https://example.org/a?b=c)")
    assert 'href="https://example.org/a?b=c"' in outside and "noopener" in outside


def test_what_markdown_has() -> None:
    shown = html("# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```sh\nls\n```\n\n# Title\n")
    assert '<h2 id="readme-title">' in shown and 'id="readme-title-1"' in shown
    assert "<td>1</td>" in shown and "<h1" not in shown
    assert '<a href="#readme-title"' in html("[up](#Title)")
    assert '<img alt=""' in html('<img src="logo.png">')
    assert "<h2>A</h2>" in html("<h1>A</h1>")
