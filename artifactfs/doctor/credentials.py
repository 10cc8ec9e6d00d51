"""Stored credentials: who may read them, and until when they are good; and what is kept of the
environment."""

from __future__ import annotations

import re
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit

from artifactfs.doctor.finding import Finding, Patient, note, ok, problem, warning
from artifactfs.errors import StateError
from artifactfs.git import surroundings
from artifactfs.redact import redact

SOON_S = 3600.0
"""A token that ends within this many seconds is worth a word before it does."""

LAST_S = 253_402_300_799  # the end of the year 9999, after which there are no dates
_EXPIRES = re.compile(r"[?&]expires=(\d+)$")


def check_credentials(patient: Patient) -> Iterator[Finding]:
    """Permissions of each credential file, and ``?expires=`` of the Artifacts tokens in it."""
    for repo in patient.repos:
        path = patient.state.repo(repo.name).credentials
        try:
            found = path.stat()
        except FileNotFoundError:
            if urlsplit(repo.remote).scheme in ("http", "https"):
                yield note(
                    "credentials.none",
                    f"{repo.name}: no credentials stored (git's credential helpers are asked)",
                    repo=repo.name,
                )
            continue
        if found.st_mode & 0o077:
            yield problem(
                "credentials.open-to-others",
                f"{path} has mode {stat.S_IMODE(found.st_mode):04o}: others can read the token",
                f"chmod 0600 {path}  (and revoke the token if others use this machine)",
                repo.name,
            )
        yield from _check_expiry(path, repo.name, redact(repo.remote), time.time())


def check_surroundings(patient: Patient) -> Iterator[Finding]:
    """What is kept of the environment of who added a repository: without it none is mounted."""
    for repo in patient.repos:
        try:
            surroundings.load(patient.state.repo(repo.name).git_environment)
        except StateError as error:
            mend = error.hint or "restore it from a backup"
            yield problem("credentials.environment-damaged", error.message, mend, repo.name)


def _check_expiry(path: Path, repo: str, url: str, now: float) -> Iterator[Finding]:
    ends = expiry_times(path)
    if not ends:
        yield ok("credentials.stored", f"{repo}: credentials are stored", repo)
        return
    end = min(max(ends), LAST_S)
    when = datetime.fromtimestamp(end, UTC).strftime("%Y-%m-%d %H:%M UTC")
    mend = f"ARTIFACTS_TOKEN=NEW_TOKEN artifact-fs set-remote --name {repo} --remote {url}"
    if end <= now:
        yield problem("credentials.expired", f"{repo}: the token expired at {when}", mend, repo)
    elif end - now < SOON_S:
        minutes = (end - now) / 60
        yield warning(
            "credentials.expire-soon",
            f"{repo}: the token expires at {when}, in {minutes:.0f} min",
            mend,
            repo,
        )
    else:
        yield ok("credentials.valid", f"{repo}: the token is good until {when}", repo)


def expiry_times(path: Path) -> list[int]:
    """Unix seconds of every ``?expires=`` in the passwords of a git-credential-store file."""
    lines = path.read_text(errors="replace").splitlines()
    passwords = (urlsplit(line).password for line in lines if line)
    found = (_EXPIRES.search(unquote(password)) for password in passwords if password)
    return [int(match[1]) for match in found if match]
