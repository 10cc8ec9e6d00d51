"""The pages for everybody: axe-core finds nothing, at both widths, by day and by night, and the
keyboard is enough; a fork is merged and a conflict shown in a real Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Git, Server, with_token
from tests.server.web.test_browser import Browser, browser  # noqa: F401 - a fixture

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
WIDTHS = {"wide": (1100, 900), "narrow": (390, 844)}
README = """\
# Demo

A tool that **does** things. See [the program](src/app.py) and [elsewhere](https://example.org/).

![Logo](logo.gif)

| option | what it does | since |
|---|---|---|
| `--very-long-option-name` | a description that is longer than a telephone is wide | 1.0 |

```sh
some-command --with --many --options --that --do --not --fit --into --the --width --of --a --page
```

> A quotation.

1. One
2. Two
"""
RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, { resultTypes: ["violations"] }).then(
  ({ violations }) => done(violations.map(({ id, nodes }) => [id, nodes.map((n) => n.html)])),
  (error) => done([["failed", [String(error)]]]));
"""


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "artifactfs-axe"
    source = cache / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "package.json").write_text('{"name": "axe", "private": true}')
        words = [npm, "install", "--no-audit", "--no-fund", "--silent", "axe-core@4"]
        subprocess.run(words, cwd=cache, check=True)
    return source.read_text()


class Project:
    """A repository with everything that a page shows, and two forks of it."""

    def __init__(self, server: Server, git: Git, work: Path, name: str) -> None:
        self.server, self.name = server, name
        (work / "README.md").write_text(README)
        (work / "logo.gif").write_bytes(b64decode("R0lGODlhAQABAAAAACwAAAAAAQABAAA="))
        git("add", "-A", cwd=work)
        git("commit", "-q", "-m", "Say what it is, at some length, so that lines break", cwd=work)
        made = server.create(name, namespace="access", description="A demonstration")
        git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
        for suffix, path in (("good", "src/new.py"), ("bad", "run.sh")):
            self.fork(f"{name}-{suffix}", path)
        self.write(name, "run.sh", "ours\n")

    def fork(self, fork: str, path: str) -> None:
        self.server.result("POST", f"/namespaces/access/repos/{self.name}/fork", {"name": fork})
        self.server.wait_ready(fork, "access")
        self.write(fork, path, "theirs\n")

    def write(self, repo: str, path: str, text: str) -> None:
        where = f"{self.server.base}/namespaces/access/repos/{repo}/file"
        with self.server.client() as client:
            assert client.put(where, content=text.encode(), params={"path": path}).is_success

    def tip(self) -> dict[str, Any]:
        found = self.server.result("GET", f"/namespaces/access/repos/{self.name}/log")
        first: dict[str, Any] = found[0]
        return first

    @property
    def base(self) -> str:
        return f"{self.server.url}/ui/ns/access/{self.name}"

    def compare(self, suffix: str) -> str:
        return f"{self.base}/compare?head_repo=access/{self.name}-{suffix}"


@pytest.fixture
def project(server: Server, git: Git, work: Path, name: str) -> Project:
    return Project(server, git, work, name[-14:].strip("-"))


def set_window(browser: Browser, width: str, scheme: str = "light") -> None:  # noqa: F811
    columns, rows = WIDTHS[width]
    mobile = width == "narrow"
    metrics = {"width": columns, "height": rows, "deviceScaleFactor": 1, "mobile": mobile}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    for command, params in (
        ("Emulation.setDeviceMetricsOverride", metrics),
        ("Emulation.setEmulatedMedia", {"features": features}),
    ):
        browser.call("POST", "/goog/cdp/execute", {"cmd": command, "params": params})


def run(browser: Browser, script: str) -> Any:  # noqa: F811
    return browser.call("POST", "/execute/sync", {"script": script, "args": []})


def log_in(browser: Browser, server: Server) -> None:  # noqa: F811
    browser.go(server.url + "/")
    browser.type("#token", server.api_token)
    browser.click(browser.find("main button"))
    browser.sees("Namespaces")


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing(
    server: Server,
    browser: Browser,  # noqa: F811
    project: Project,
    axe: str,
    width: str,
    tmp_path: Path,
) -> None:
    set_window(browser, width)
    browser.go(server.url + "/")
    found = {"login": violations(browser, axe)}
    log_in(browser, server)
    pages = {
        "namespaces": f"{server.url}/",
        "repositories": f"{server.url}/ui/ns/access",
        "tree": project.base,
        "folder": f"{project.base}?path=src",
        "file": f"{project.base}/file?path=src/app.py",
        "log": f"{project.base}/log",
        "commit": f"{project.base}/commit/{project.tip()['hash']}",
        "compare": f"{project.base}/compare",
        "mergeable": project.compare("good"),
        "conflict": project.compare("bad"),
        "tokens": f"{project.base}/tokens",
        "activity": f"{server.url}/ui/activity",
        "problem": f"{project.base}?path=no/such",
    }
    for scheme in ("light", "dark"):
        set_window(browser, width, scheme)
        for name, url in pages.items():
            browser.go(url)
            found[f"{name} {scheme}"] = violations(browser, axe)
            assert run(browser, "return document.documentElement.scrollWidth") <= WIDTHS[width][0]
            picture(browser, tmp_path / f"{name}-{scheme}.png")
    assert {page: wrong for page, wrong in found.items() if wrong} == {}


def picture(browser: Browser, path: Path) -> None:  # noqa: F811
    """The whole page, however long it is."""
    body = {"cmd": "Page.captureScreenshot", "params": {"captureBeyondViewport": True}}
    path.write_bytes(b64decode(browser.call("POST", "/goog/cdp/execute", body)["data"]))


def violations(browser: Browser, axe: str) -> list[Any]:  # noqa: F811
    run(browser, axe)
    body = {"script": RUN_AXE, "args": []}
    found: list[Any] = browser.call("POST", "/execute/async", body)
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_merging_on_the_page(
    server: Server,
    browser: Browser,  # noqa: F811
    project: Project,
    width: str,
    tmp_path: Path,
) -> None:
    set_window(browser, width)
    log_in(browser, server)
    browser.go(f"{project.base}-good")
    browser.click(browser.link("compare and merge back"))
    browser.sees("nothing conflicts")
    before = project.tip()["hash"]
    browser.type("#message", "Take it, from the page")
    browser.click(browser.find("form.merge button"))
    browser.sees("Merged")
    browser.picture(tmp_path / "merged.png")
    top = project.tip()
    assert (top["message"], top["parents"][0]) == ("Take it, from the page", before)
    browser.go(project.compare("bad"))
    browser.sees("one file conflicts")
    assert "run.sh" in browser.text(".wrong")
    assert run(browser, "return document.querySelectorAll('form.merge').length") == 0
    assert project.tip() == top
    complaints = [e["message"] for e in browser.console() if e["source"] != "network"]
    assert complaints == []


def test_the_keyboard_and_the_copy_buttons(
    server: Server,
    browser: Browser,  # noqa: F811
    project: Project,
) -> None:
    log_in(browser, server)
    browser.go(project.base)
    focused = "const e = document.activeElement; return e.textContent.trim() || e.id"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    seen = []
    for _ in range(14):
        press(browser, "\ue004")  # Tab
        seen.append(run(browser, focused))
        assert run(browser, outline) != "none", seen
    assert seen[0] == "Skip to the content" and {"Compare", "Tokens", "Copy"} <= set(seen)
    button = browser.find("button[data-copy=mount]")
    run(browser, "document.querySelector('button[data-copy=mount]').focus()")
    press(browser, "\ue007")  # Enter
    browser.sees("Cop", "button[data-copy=mount]")
    assert "mount" in run(browser, "return document.getElementById('copied').textContent")
    browser.click(button)
    complaints = [e["message"] for e in browser.console() if e["source"] != "network"]
    assert complaints == []


def press(browser: Browser, key: str) -> None:  # noqa: F811
    steps = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
    actions = [{"type": "key", "id": "keyboard", "actions": steps}]
    browser.call("POST", "/actions", {"actions": actions})
