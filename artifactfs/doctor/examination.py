"""Runs every check at once, each with its own deadline, and sorts what they say."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.registration import MARKER, remotes_of, resolve_mount_point
from artifactfs.daemon.repositories.registry import Registration, read_row
from artifactfs.doctor import credentials, features, liveness, machine, storage
from artifactfs.doctor.finding import Finding, Patient, Severity, problem, warning
from artifactfs.features import Features
from artifactfs.paths import StateLayout
from artifactfs.redact import redact

Check = Callable[[Patient], Iterable[Finding]]

LOCAL_CHECKS: tuple[Check, ...] = (
    machine.check_device,
    machine.check_kernel,
    machine.check_privileges,
    machine.check_libraries,
    features.check_features,
    machine.check_fuse_conf,
    machine.check_git,
    machine.check_limits,
    machine.check_halt_polling,
    storage.check_state_root,
    storage.check_space,
    storage.check_databases,
    storage.check_gitdirs,
    credentials.check_credentials,
    credentials.check_surroundings,
    liveness.check_daemon,
    liveness.check_mounts,
    liveness.check_redirects,
)
_GRACE_S = 60.0
"""How long a local check may take in all; a disk that hangs must not hang the report."""

_OF_MOUNTS = (liveness.check_daemon, liveness.check_mounts, liveness.check_redirects)
"""Checks that read no disk: what they wait for is a mount or the daemon."""


@dataclass(slots=True)
class Report:
    """All findings, in the order of the checks, and what mounts would have here, if known."""

    findings: list[Finding] = field(default_factory=list)
    features: Features | None = None

    @property
    def problems(self) -> int:
        return self._count(Severity.PROBLEM)

    @property
    def warnings(self) -> int:
        return self._count(Severity.WARNING)

    def _count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)


async def examine(
    state: StateLayout,
    *,
    mount_root: Path | None = None,
    remotes: bool = True,
    deep: bool = False,
    deadline_s: float = 5.0,
    only: str | None = None,
) -> Report:
    """Look at this machine and at `state`; with `remotes`, ask each repository's remote as well.

    `only`: of repositories, that one alone. Needs no daemon, changes nothing, and ends even where a
    mount, a disk or a remote hangs: each wait for one of those has `deadline_s`.
    """
    patient, faults = await trio.to_thread.run_sync(
        _patient, state, mount_root or state.mount_root(), deadline_s, deep
    )
    if only is not None:
        patient = replace(patient, repos=tuple(r for r in patient.repos if r.name == only))
    repos = patient.repos
    slots: list[list[Finding]] = [[] for _ in LOCAL_CHECKS]
    remote_slots: list[list[Finding]] = [[] for _ in repos]
    async with trio.open_nursery() as nursery:
        for check, slot in zip(LOCAL_CHECKS, slots, strict=True):
            nursery.start_soon(_run_local, check, patient, slot)
        if remotes:
            for repo, slot in zip(repos, remote_slots, strict=True):
                nursery.start_soon(_run_remote, patient, repo, slot)
    found = [*faults, *(finding for slot in (*slots, *remote_slots) for finding in slot)]
    if only is not None:
        found = [finding for finding in found if finding.repo in (None, "", only)]
    return Report(found, await trio.to_thread.run_sync(features.known_features, patient))


def _patient(
    state: StateLayout, mount_root: Path, deadline_s: float, deep: bool
) -> tuple[Patient, list[Finding]]:
    try:
        rows = read_registry(state.registry_db)
        repos = [row.settings for row in rows if row.damaged is None]
        disabled = frozenset(row.name for row in rows if not row.enabled)
        faults = [
            problem("registry.row-damaged", row.damaged.message, row.damaged.hint or "", row.name)
            for row in rows
            if row.damaged is not None
        ]
        faults += _unregistered(state, {row.name for row in rows})
        faults += _lost(state, rows)
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        repos, disabled = [], frozenset()
        faults = [
            problem(
                "registry.unreadable",
                f"{state.registry_db} cannot be read ({error}): no repository is known",
                "see what artifact-fs doctor says about the state root and the database",
            )
        ]
    resolved = tuple(
        replace(repo, mount_point=resolve_mount_point(repo, mount_root)) for repo in repos
    )
    return Patient(state, resolved, deadline_s, deep, disabled), faults


def _unregistered(state: StateLayout, known: set[str]) -> Iterator[Finding]:
    """Data of repositories that the registry does not have: it was lost, or one of its rows."""
    for directory in sorted(state.repos.iterdir()) if state.repos.is_dir() else ():
        if directory.name in known or (directory / MARKER).exists():
            continue
        url = next(iter(remotes_of(directory / "git")), "URL")
        yield problem(
            "registry.repo-missing",
            f"{directory} is of no registered repository: the registry has lost it",
            f"artifact-fs add-repo --name {shlex.quote(directory.name)}"
            f" --remote {shlex.quote(redact(url))}  (its data is kept; give its options again)",
            directory.name,
        )


def _lost(state: StateLayout, rows: list[Registration]) -> Iterator[Finding]:
    """What was mounted, and is not on the disk any more. (The daemon clones it anew.)"""
    for row in rows:
        gitdir = state.repos / row.name / "git"
        if row.mounted is not None and not row.settings.git_dir and not gitdir.exists():
            yield problem(
                "gitdir.missing",
                f"{gitdir} is missing, with the commits that only it had",
                "restore it from a backup before the daemon starts, which clones it anew",
                row.name,
            )


def read_registry(path: Path) -> list[Registration]:
    """Every repository, without writing a byte.

    `Registry` would migrate, and cannot open its file on a full disk. Raises: sqlite3.Error.
    """
    if not path.exists():
        return []
    try:
        return _registry_rows(path, f"{path.as_uri()}?mode=ro")
    except sqlite3.OperationalError:
        # A database in WAL mode wants to make its -shm file; where that fails, nobody writes.
        return _registry_rows(path, f"{path.as_uri()}?mode=ro&immutable=1")


def _registry_rows(path: Path, uri: str) -> list[Registration]:
    with closing(sqlite3.connect(uri, uri=True, timeout=5)) as database:
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM repos ORDER BY name").fetchall()
    return [read_row(path, dict(row)) for row in rows]


async def _run_local(check: Check, patient: Patient, slot: list[Finding]) -> None:
    name = check.__name__.removeprefix("check_")
    grace_s = _GRACE_S if not patient.deep else float("inf")
    if check in _OF_MOUNTS:
        grace_s = patient.deadline_s + 1.0
    with trio.move_on_after(grace_s) as scope:
        slot += await trio.to_thread.run_sync(_collect, check, patient, abandon_on_cancel=True)
    if scope.cancelled_caught:
        slot.append(
            warning(
                f"{name}.slow",
                f"the check of {name} did not end within {grace_s:.0f} s",
                "look at the disk: dmesg | tail",
            )
        )


def _collect(check: Check, patient: Patient) -> list[Finding]:
    findings: list[Finding] = []
    found: Iterator[Finding] = iter(check(patient))
    try:
        findings.extend(found)
    except OSError as error:
        name = check.__name__.removeprefix("check_")
        findings.append(
            problem(
                f"{name}.failed",
                f"the check of {name} could not go on: {error}",
                "run artifact-fs doctor as the user who owns the state root",
            )
        )
    except Exception as error:  # what nobody thought of must not cost the other findings
        name = check.__name__.removeprefix("check_")
        findings.append(_puzzled(f"{name}.failed", f"the check of {name}", error))
    return findings


def _puzzled(code: str, what: str, error: Exception) -> Finding:
    return problem(
        code,
        f"{what} could not go on: {type(error).__name__}: {redact(str(error))}",
        "report this with what artifact-fs doctor --json prints",
    )


async def _run_remote(patient: Patient, repo: RepoSettings, slot: list[Finding]) -> None:
    from artifactfs.doctor.remotes import check_remote

    try:
        async for finding in check_remote(patient, repo):
            slot.append(finding)
    except Exception as error:
        slot.append(_puzzled("remote.failed", f"the check of {repo.name}'s remote", error))
