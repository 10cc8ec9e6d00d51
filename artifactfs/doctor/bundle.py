"""``artifact-fs doctor --bundle FILE``: a report that can be sent, without secrets.

What is in it goes through `redact`, which is told every password of the state root first. No
contents of repositories, no names of files in them but those that the log has.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from artifactfs import __version__
from artifactfs.paths import StateLayout
from artifactfs.redact import redact, remember_secret
from artifactfs.system.files import replace_file

LOG_BYTES = 1 << 20
"""So much of the end of the log."""
_VERSION_DEADLINE_S = 10.0
_SECRET_WORDS = ("TOKEN", "SECRET", "PASSWORD", "KEY")


def write_bundle(
    target: Path, state: StateLayout, texts: Mapping[str, str], configuration: Path | None
) -> list[str]:
    """Write a zip file of mode 0600; returns the names in it. `texts` are what commands say, by
    name. Blocks. Raises: OSError."""
    remember_passwords(state)
    parts: dict[str, Callable[[], str]] = {
        "versions.txt": _versions,
        "environment.txt": _environment,
        "mounts.txt": _mounts,
        "daemon.log": lambda: _tail(state.root / "daemon.log"),
    }
    if configuration is not None:
        parts["config.toml"] = configuration.read_text
    found = dict(texts)
    for name, read in parts.items():
        with suppress(OSError):
            found[name] = read()
    replace_file(target, b"", mode=0o600)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in found.items():
            bundle.writestr(name, redact(text))
    return list(found)


def remember_passwords(state: StateLayout) -> None:
    """Every password that is stored is masked from now on. Blocks on the disk."""
    for file in state.repos.glob("*/credentials"):
        with suppress(OSError, ValueError):
            for line in file.read_text(errors="replace").splitlines():
                split = urlsplit(line)
                if split.password:
                    remember_secret(unquote(split.password), unquote(split.username or ""))


def _versions() -> str:
    python = platform.python_version()
    lines = [f"artifactfs {__version__}", f"python {python}", platform.platform()]
    for command in (("git", "--version"), ("fusermount3", "--version"), ("uname", "-a")):
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_VERSION_DEADLINE_S, check=False
            )
            lines.append(done.stdout.strip())
    lines.append(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    return "\n".join(lines) + "\n"


def _environment() -> str:
    """Ours and git's variables; of those that may be secret, only that they are set."""
    lines = []
    for name, value in sorted(os.environ.items()):
        if name.startswith(("ARTIFACT", "GIT_")):
            hidden = any(word in name for word in _SECRET_WORDS)
            lines.append(f"{name}={'(set)' if hidden else json.dumps(value)}")
    return "\n".join(lines) + "\n"


def _mounts() -> str:
    lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    return "\n".join(line for line in lines if "artifact" in line or " fuse" in line) + "\n"


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LOG_BYTES))
        return file.read().decode("utf-8", "replace")
