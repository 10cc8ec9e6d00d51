"""The remotes: reachable, what they offer, whether they take our credentials, and their clock."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
import trio

from artifactfs.config import RepoSettings
from artifactfs.doctor.finding import Finding, Patient, note, ok, problem, warning
from artifactfs.errors import (
    ArtifactFSError,
    AuthenticationFailed,
    RemoteNotFound,
    RemoteUnreachable,
)
from artifactfs.git.configuration.kept import surroundings_of
from artifactfs.git.remote.opening import Place, probe_remote
from artifactfs.git.remote.remote import Capabilities
from artifactfs.git.repository.refspecs import tracked_remote
from artifactfs.git.surroundings import within
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.redact import redact

CLOCK_NOTICEABLE_S = 30.0
CLOCK_WRONG_S = 300.0
"""From here on tokens look expired, or good, when they are not."""


async def check_remote(patient: Patient, repo: RepoSettings) -> AsyncIterator[Finding]:
    """Ask the remote what it offers, as a mount does first, and compare the clocks."""
    url = redact(repo.remote)
    try:
        with trio.fail_after(patient.deadline_s):
            capabilities = await _probe(patient, repo)
    except trio.TooSlowError:
        yield _unreachable(repo, f"{url} did not answer within {patient.deadline_s:.0f} s")
    except ArtifactFSError as error:
        yield _refused(repo, url, error)
    else:
        yield _reachable(repo, url, capabilities)
    async for finding in check_clock(repo, patient.deadline_s):
        yield finding


async def _probe(patient: Patient, repo: RepoSettings) -> Capabilities:
    """With the surroundings and the configuration that its mount has. Raises: ArtifactFSError."""
    layout = patient.state.repo(repo.name)
    with within(await surroundings_of(layout, repo)):
        place = Place()
        if layout.gitdir.exists():
            tracked = await tracked_remote(layout.gitdir, repo.remote)
            place = Place(layout.gitdir, tracked.name)
        return await probe_remote(
            repo.remote,
            CredentialFile(layout.credentials),
            deadline_s=patient.deadline_s,
            place=place,
        )


def _reachable(repo: RepoSettings, url: str, capabilities: Capabilities) -> Finding:
    if capabilities.limits:
        return note(
            "remote.limited",
            f"{repo.name}: {url} answers, but {'; '.join(capabilities.limits)}",
            repo=repo.name,
        )
    offered = [f"protocol {capabilities.protocol}"]
    offered += [
        name for name in ("filter", "object_info", "any_oid") if getattr(capabilities, name)
    ]
    if capabilities.git_because is not None:
        offered.append(f"git asks it for us: {capabilities.git_because}")
    return ok("remote.reachable", f"{repo.name}: {url} answers ({', '.join(offered)})", repo.name)


def _unreachable(repo: RepoSettings, what: str) -> Finding:
    return problem(
        "remote.unreachable",
        f"{repo.name}: {what}",
        f"check the network, or: artifact-fs set-remote --name {repo.name} --remote URL",
        repo.name,
    )


def _refused(repo: RepoSettings, url: str, error: ArtifactFSError) -> Finding:
    what = redact(error.message)
    if isinstance(error, AuthenticationFailed):
        return problem(
            "remote.refused-credentials",
            f"{repo.name}: {url} refuses the credentials ({what})",
            f"ARTIFACTS_TOKEN=NEW_TOKEN artifact-fs set-remote --name {repo.name} --remote {url}",
            repo.name,
        )
    if isinstance(error, RemoteNotFound):
        return problem(
            "remote.not-found",
            f"{repo.name}: {url}: {what}",
            f"artifact-fs set-remote --name {repo.name} --remote URL",
            repo.name,
        )
    if isinstance(error, RemoteUnreachable):
        return _unreachable(repo, what)
    return problem(
        "remote.failing", f"{repo.name}: {url}: {what}", f"git ls-remote {url}", repo.name
    )


async def check_clock(repo: RepoSettings, deadline_s: float) -> AsyncIterator[Finding]:
    """Compare our clock with the ``Date`` header (RFC 9110, whole seconds) of an http remote."""
    if urlsplit(repo.remote).scheme not in ("http", "https"):
        return
    try:
        skew = await clock_skew(repo.remote, deadline_s)
    except (httpx.HTTPError, ssl.SSLError, ValueError, trio.TooSlowError):
        return  # a remote that does not answer has a finding of its own
    if skew is None:
        return
    direction = "behind" if skew > 0 else "ahead of"
    what = f"this machine's clock is {abs(skew):.0f} s {direction} that of {repo.name}'s remote"
    mend = "timedatectl set-ntp true  (or: chronyc makestep)"
    if abs(skew) >= CLOCK_WRONG_S:
        yield problem("clock.wrong", what, mend, repo.name)
    elif abs(skew) >= CLOCK_NOTICEABLE_S:
        yield warning("clock.skewed", what, mend, repo.name)
    else:
        yield ok("clock.right", f"the clock agrees with that of {repo.name}'s remote", repo.name)


async def clock_skew(url: str, deadline_s: float) -> float | None:
    """Seconds by which the remote's clock is ahead of ours; None where it sends no date.

    Any answer will do, a refusal too, so no credentials are sent.
    """
    plain = urlsplit(url)
    host = plain.netloc.rpartition("@")[2]
    probe = plain._replace(netloc=host, path=f"{plain.path.rstrip('/')}/info/refs")
    with trio.fail_after(deadline_s):
        async with httpx.AsyncClient(timeout=deadline_s, follow_redirects=False) as client:
            before = time.time()
            answer = await client.head(
                probe._replace(query="service=git-upload-pack", fragment="").geturl()
            )
            after = time.time()
    date = answer.headers.get("date")
    if date is None:
        return None
    return parsedate_to_datetime(date).timestamp() + 0.5 - (before + after) / 2
