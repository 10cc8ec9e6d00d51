"""The web page in a real Chromium, driven by the W3C WebDriver protocol through chromedriver."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.running import Git, Server, with_token

pytestmark = pytest.mark.long
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = [
    *["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"],
    *["--disable-background-networking", "--disable-component-update", "--disable-sync"],
    "--window-size=1100,900",
]


class Gone(Exception):
    """The element is not on the page, or not any more."""


@dataclass
class Browser:
    """One browser window."""

    http: httpx.Client
    session: str

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = body if method == "GET" else body or {}
        answer = self.http.request(method, f"/session/{self.session}{path}", json=content)
        value = answer.json()["value"]
        if answer.status_code == 404 and "element" in value["error"]:
            raise Gone(value["error"])
        assert answer.status_code == 200, value
        return value

    def go(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def find(self, selector: str) -> str:
        return self._find("css selector", selector)

    def link(self, text: str) -> str:
        return self._find("link text", text)

    def _find(self, using: str, value: str) -> str:
        found: str = self.call("POST", "/element", {"using": using, "value": value})[_ELEMENT]
        return found

    def click(self, element: str) -> None:
        self.call("POST", f"/element/{element}/click")

    def type(self, selector: str, text: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def text(self, selector: str = "main") -> str:
        found: str = self.call("GET", f"/element/{self.find(selector)}/text")
        return found

    def sees(self, text: str, selector: str = "main") -> None:
        """Wait for a text: a click returns before the next page is there."""
        deadline = time.monotonic() + 90
        shown = ""
        while text not in shown:
            assert time.monotonic() < deadline, (text, shown)
            time.sleep(0.05)
            with contextlib.suppress(Gone):
                shown = self.text(selector)

    def picture(self, path: Path) -> None:
        path.write_bytes(b64decode(self.call("GET", "/screenshot")))

    def console(self) -> list[dict[str, Any]]:
        """What the page complained about, refusals by the security policy included."""
        entries: list[dict[str, Any]] = self.call("POST", "/se/log", {"type": "browser"})
        return entries


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = next(
        line.split()[-1].rstrip(".") for line in process.stdout if "successfully on port" in line
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={tmp_path / 'profile'}"]}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options}}
        made = http.post("/session", json={"capabilities": wanted}).json()["value"]
        assert "sessionId" in made, made
        # What is not on the page yet is waited for.
        http.post(f"/session/{made['sessionId']}/timeouts", json={"implicit": 10_000})
        found = Browser(http, made["sessionId"])
        yield found
        found.call("DELETE", "")
    process.terminate()
    process.wait()
    process.stdout.close()


def test_no_page_is_wider_than_a_telephone(
    server: Server, browser: Browser, git: Git, work: Path, name: str
) -> None:
    made = server.create(name, namespace="telephone", description="x" * 200)
    url = with_token(made["remote"], made["token"])
    git("push", "-q", url, "main", f"main:refs/heads/{'long-name-' * 8}", cwd=work)
    for scope in ("read", "write"):
        fields = {"repo": name, "scope": scope}
        server.result("POST", "/namespaces/telephone/tokens", fields)
    browser.go(server.url + "/")
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
    browser.call("POST", "/goog/cdp/execute", command)
    browser.type("#token", server.api_token)
    browser.click(browser.find("main button"))
    browser.sees("telephone")
    base = f"/ui/ns/telephone/{name}"
    for page in ("/", "/ui/ns/telephone", base, f"{base}/log", f"{base}/tokens"):
        browser.go(server.url + page)
        browser.find("main")
        script = {"script": "return document.documentElement.scrollWidth", "args": []}
        assert browser.call("POST", "/execute/sync", script) <= 390, page
    browser.click(browser.find("main .card button"))
    browser.sees("art_v1_", "#secret")
    assert browser.call("POST", "/execute/sync", script) <= 390


def test_a_person_walks_through(
    server: Server, browser: Browser, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name, namespace="browsing")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    browser.go(server.url + "/")
    browser.type("#token", "wrong")
    browser.click(browser.find("main button"))
    browser.sees("not valid")
    browser.type("#token", server.api_token)
    browser.click(browser.find("main button"))
    browser.click(browser.link("browsing"))
    browser.click(browser.link(name))
    browser.sees("README.md", ".files")
    browser.picture(tmp_path / "tree.png")
    browser.click(browser.link("src/"))
    browser.click(browser.link("app.py"))
    browser.sees("print('two')", ".source")
    browser.click(browser.link("Log"))
    browser.click(browser.find("tbody a"))
    browser.sees("+print('two')", ".patch")
    browser.click(browser.link("Tokens"))
    browser.click(browser.find("main .card button"))
    browser.sees("art_v1_", "#secret")
    token = browser.text("#secret")
    git("ls-remote", with_token(made["remote"], token))
    browser.click(browser.find("td form button"))
    browser.sees("revoked", "table")
    browser.click(browser.link("Activity"))
    browser.sees("push", "table")
    browser.picture(tmp_path / "activity.png")
    complaints = [e["message"] for e in browser.console() if e["source"] != "network"]
    assert complaints == []
    browser.click(browser.find("header button"))
    browser.sees("Log in")
