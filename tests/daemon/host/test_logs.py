"""Log lines: one JSON object each, no secrets, no floods."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from artifactfs.daemon.host import logs
from artifactfs.errors import InvalidInput


def log_of(code: str) -> list[dict[str, object]]:
    """The log lines that a process with this code writes."""
    program = f"import logging\nfrom artifactfs.daemon.host import logs\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_fields() -> None:
    (line,) = log_of("""
logs.configure("info", repo="hello")
logging.getLogger("artifactfs.x").debug("not shown")
logging.getLogger("artifactfs.x").warning("failed: %s", "why", extra={"path": b"a\\xff", "ms": 3})
""")
    assert line["level"] == "warning"
    assert line["logger"] == "artifactfs.x"
    assert line["message"] == "failed: why"
    assert line["repo"] == "hello"
    assert line["path"] == "a\ufffd"
    assert line["ms"] == 3
    assert str(line["time"]).endswith("Z")
    assert isinstance(line["pid"], int)


def test_secrets_are_removed_everywhere() -> None:
    lines = log_of("""
logs.configure("info")
log = logging.getLogger("x")
url = "https://user:hunter2@host/x"
log.info("fetch %s", url, extra={"url": url})
try:
    raise ValueError(url)
except ValueError:
    log.exception("failed")
""")
    assert len(lines) == 2
    assert "hunter2" not in json.dumps(lines)
    assert "ValueError" in str(lines[1]["exception"])


def test_repetitions_are_dropped() -> None:
    lines = log_of("""
logs.configure("info")
for number in range(500):
    logging.getLogger("x").info("again %d", number)
logging.getLogger("x").info("something else")
""")
    assert len(lines) == logs.BURST + 1
    assert lines[-1]["message"] == "something else"


def test_the_same_words_are_said_once() -> None:
    lines = log_of("""
logs.configure("info")
for _ in range(3):
    logging.getLogger("x").warning("reading %s failed", "a")
    logging.getLogger("x").warning("reading %s failed", "b")
""")
    assert [line["message"] for line in lines] == ["reading a failed", "reading b failed"]


def test_each_repository_is_told_of() -> None:
    """The daemon says the same of each, at once when it starts."""
    lines = log_of("""
logs.configure("info")
for number in range(50):
    logging.getLogger("x").info("mounted", extra={"repo": f"r{number}"})
    logging.getLogger("x").error("cannot mount: %s", "refused", extra={"repo": f"r{number}"})
""")
    assert len(lines) == 100


def test_unknown_level() -> None:
    with pytest.raises(InvalidInput, match="loud"):
        logs.configure("loud")
