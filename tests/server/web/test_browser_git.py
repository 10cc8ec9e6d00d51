"""Git in a browser: isomorphic-git on a page of another origin, let in by ``--cors-origin``."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.server.running import Git, Server, ServerFactory, with_token
from tests.server.web.test_browser import Browser, browser  # noqa: F401 - a fixture

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
PACKAGES = ["isomorphic-git@1", "@isomorphic-git/lightning-fs@4", "buffer@6"]
MODULES = ("base64-js", "ieee754", "buffer")
"""isomorphic-git wants Node's Buffer on a page, too."""
SCRIPTS = (
    "isomorphic-git/index.umd.min.js",
    "isomorphic-git/http/web/index.umd.js",
    "@isomorphic-git/lightning-fs/dist/lightning-fs.min.js",
)
PAGE = """<!doctype html><meta charset="utf-8"><title>git</title>
<script src="buffer.js"></script>
<script src="0.js"></script><script src="1.js"></script><script src="2.js"></script>
<script>
async function work(url, token, api, apiToken) {
  const fs = new LightningFS("fs", { wipe: true });
  const http = GitHttp, dir = "/tree", onAuth = () => ({ username: "x", password: token });
  await git.clone({ fs, http, dir, url, onAuth, singleBranch: true });
  const read = await fs.promises.readFile(dir + "/README.md", "utf8");
  await fs.promises.writeFile(dir + "/from-a-page.txt", "hello\\n");
  await git.add({ fs, dir, filepath: "from-a-page.txt" });
  const author = { name: "Page", email: "page@example.org" };
  const oid = await git.commit({ fs, dir, message: "From a page", author });
  const pushed = await git.push({ fs, http, dir, onAuth, ref: "main" });
  const refs = await git.listServerRefs({ http, url, onAuth, protocolVersion: 2 });
  const headers = { Authorization: "Bearer " + apiToken, Range: "bytes=0-1" };
  const part = await fetch(api + "/raw/main/from-a-page.txt", { headers });
  const tag = part.headers.get("ETag");
  const described = await (await fetch(api, { headers })).json();
  return { read, oid, ok: pushed.ok, refs: refs.map((ref) => ref.oid), tag,
           part: await part.text(), name: described.result.name };
}
</script>"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def page_origin(tmp_path: Path) -> Iterator[str]:
    """A server of static files, at another origin."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "artifactfs-browser"
    if not (cache / "installed").exists():
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "package.json").write_text('{"name": "page", "private": true}')
        words = [npm, "install", "--no-audit", "--no-fund", "--silent", *PACKAGES]
        subprocess.run(words, cwd=cache, check=True)
        (cache / "installed").touch()
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text(PAGE)
    parts = ["const modules = {};"]
    for name in MODULES:
        source = (cache / "node_modules" / name / "index.js").read_text()
        parts.append(
            f"modules['{name}'] = (() => {{ const module = {{ exports: {{}} }}; let exports ="
            f" module.exports; const require = (name) => modules[name];\n{source}\n"
            "return module.exports; })();"
        )
    parts.append("window.Buffer = modules.buffer.Buffer;")
    (site / "buffer.js").write_text("(() => {" + "\n".join(parts) + "})();")
    for number, script in enumerate(SCRIPTS):
        shutil.copy(cache / "node_modules" / script, site / f"{number}.js")
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def run_on_page(browser: Browser, *arguments: str) -> Any:  # noqa: F811
    script = """const [end, rest] = [arguments[arguments.length - 1], [...arguments].slice(0, -1)];
        work(...rest).then((value) => end({ value }), (error) => end({ error: String(error) }));"""
    browser.call("POST", "/timeouts", {"script": 60_000})
    return browser.call("POST", "/execute/async", {"script": script, "args": list(arguments)})


def arguments_for(server: Server, git: Git, work: Path, name: str) -> list[str]:
    made = server.create(name, namespace="pages")
    git("push", "-q", with_token(made["remote"], made["token"]), "main", cwd=work)
    api = f"{server.url}/v1/api/namespaces/pages/repos/{name}"
    return [made["remote"], made["token"], api, server.api_token]


def test_git_on_a_page_of_another_origin(
    start_server: ServerFactory,
    browser: Browser,  # noqa: F811
    page_origin: str,
    git: Git,
    work: Path,
) -> None:
    server = start_server("--cors-origin", page_origin)
    arguments = arguments_for(server, git, work, "app")
    browser.go(page_origin)
    found = run_on_page(browser, *arguments)
    assert "error" not in found, (found, browser.console())
    done = found["value"]
    assert done["ok"] is True and done["read"] == "# Demo\n"
    assert done["oid"] in done["refs"]
    assert (done["part"], done["name"], done["tag"][:1]) == ("he", "app", chr(34))
    tip = git("ls-remote", with_token(arguments[0], arguments[1]), "main").split()[0]
    assert tip == done["oid"]


def test_without_the_setting_the_browser_refuses(
    server: Server,
    browser: Browser,  # noqa: F811
    page_origin: str,
    git: Git,
    work: Path,
    name: str,
) -> None:
    browser.go(page_origin)
    found = run_on_page(browser, *arguments_for(server, git, work, name))
    assert "Failed to fetch" in found["error"]
