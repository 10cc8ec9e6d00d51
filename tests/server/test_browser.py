"""The web page in a real Chromium, driven by the W3C WebDriver protocol through chromedriver."""

from __future__ import annotations

import shutil
import subprocess
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


@dataclass
class Browser:
    """One browser window."""

    http: httpx.Client
    session: str

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        content = body if method == "GET" else body or {}
        answer = self.http.request(method, f"/session/{self.session}{path}", json=content)
        value = answer.json()["value"]
        assert answer.status_code == 200, value
        return value

    def go(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def find(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        found: str = self.call("POST", "/element", body)[_ELEMENT]
        return found

    def link(self, text: str) -> str:
        body = {"using": "link text", "value": text}
        found: str = self.call("POST", "/element", body)[_ELEMENT]
        return found

    def click(self, element: str) -> None:
        self.call("POST", f"/element/{element}/click")

    def type(self, selector: str, text: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def text(self, selector: str = "main") -> str:
        found: str = self.call("GET", f"/element/{self.find(selector)}/text")
        return found

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
        found = Browser(http, made["sessionId"])
        yield found
        found.call("DELETE", "")
    process.terminate()
    process.wait()
    process.stdout.close()


def test_a_person_walks_through(
    server: Server, browser: Browser, git: Git, work: Path, name: str, tmp_path: Path
) -> None:
    made = server.create(name, namespace="browsing")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    browser.go(server.url + "/")
    browser.type("#token", "wrong")
    browser.click(browser.find("main button"))
    assert "not valid" in browser.text()
    browser.type("#token", server.api_token)
    browser.click(browser.find("main button"))
    browser.click(browser.link("browsing"))
    browser.click(browser.link(name))
    assert "README.md" in browser.text(".files")
    browser.picture(tmp_path / "tree.png")
    browser.click(browser.link("src/"))
    browser.click(browser.link("app.py"))
    assert browser.text(".source") == "print('two')"
    browser.click(browser.link("Log"))
    browser.click(browser.find("tbody a"))
    assert "+print('two')" in browser.text(".patch")
    browser.click(browser.link("Tokens"))
    browser.click(browser.find("main .card button"))
    token = browser.text("#secret")
    git("ls-remote", with_token(made["remote"], token))
    browser.click(browser.find("td form button"))
    assert "revoked" in browser.text("table")
    browser.click(browser.link("Activity"))
    assert "push" in browser.text("table")
    browser.picture(tmp_path / "activity.png")
    complaints = [e["message"] for e in browser.console() if e["source"] != "network"]
    assert complaints == []
    browser.click(browser.find("header button"))
    assert "Log in" in browser.text()
