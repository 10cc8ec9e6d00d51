"""Runs every check at once, each with its own deadline, and sorts what they say."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import trio

from artifactfs.config import RepoSettings
from artifactfs.doctor import credentials, liveness, machine, storage
from artifactfs.doctor.finding import Finding, Patient, Severity, problem, warning
from artifactfs.errors import ArtifactFSError
from artifactfs.paths import StateLayout

Check = Callable[[Patient], Iterable[Finding]]

LOCAL_CHECKS: tuple[Check, ...] = (
    machine.check_device,
    machine.check_kernel,
    machine.check_privileges,
    machine.check_libraries,
    machine.check_fuse_conf,
    machine.check_git,
    machine.check_limits,
    storage.check_state_root,
    storage.check_space,
    storage.check_databases,
    storage.check_gitdirs,
    credentials.check_credentials,
    liveness.check_daemon,
    liveness.check_mounts,
)
_GRACE_S = 60.0
"""How long a local check may take in all; a disk that hangs must not hang the report."""


@dataclass(slots=True)
class Report:
    """All findings, in the order of the checks."""

    findings: list[Finding] = field(default_factory=list)

    @property
    def problems(self) -> int:
        return self._count(Severity.PROBLEM)

    @property
    def warnings(self) -> int:
        return self._count(Severity.WARNING)

    def _count(self, severity: Severity) -> int:
        return sum(finding.severity is severity for finding in self.findings)


async def examine(
    state: StateLayout, *, remotes: bool = True, deep: bool = False, deadline_s: float = 5.0
) -> Report:
    """Look at this machine and at `state`; with `remotes`, ask each repository's remote as well.

    Needs no daemon, changes nothing, and ends even where a mount, a disk or a remote hangs: each
    wait for one of those has `deadline_s`.
    """
    repos, faults = await trio.to_thread.run_sync(_registered, state)
    patient = Patient(state, repos, deadline_s, deep)
    slots: list[list[Finding]] = [[] for _ in LOCAL_CHECKS]
    remote_slots: list[list[Finding]] = [[] for _ in repos]
    async with trio.open_nursery() as nursery:
        for check, slot in zip(LOCAL_CHECKS, slots, strict=True):
            nursery.start_soon(_run_local, check, patient, slot)
        if remotes:
            for repo, slot in zip(repos, remote_slots, strict=True):
                nursery.start_soon(_run_remote, patient, repo, slot)
    return Report([*faults, *(finding for slot in (*slots, *remote_slots) for finding in slot)])


def _registered(state: StateLayout) -> tuple[tuple[RepoSettings, ...], list[Finding]]:
    from artifactfs.daemon.registry import Registry

    if not state.registry_db.exists():
        return (), []
    try:
        with Registry.open_readonly(state) as registry:
            return tuple(registry.repos()), []
    except (ArtifactFSError, sqlite3.Error, OSError) as error:
        return (), [
            problem(
                "registry.unreadable",
                f"{state.registry_db} cannot be read: {error}",
                "see what artifact-fs doctor says about the database",
            )
        ]


async def _run_local(check: Check, patient: Patient, slot: list[Finding]) -> None:
    name = check.__name__.removeprefix("check_")
    with trio.move_on_after(_GRACE_S if not patient.deep else float("inf")) as scope:
        slot += await trio.to_thread.run_sync(_collect, check, patient, abandon_on_cancel=True)
    if scope.cancelled_caught:
        slot.append(
            warning(
                f"{name}.slow",
                f"the check of {name} did not end within {_GRACE_S:.0f} s",
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
    return findings


async def _run_remote(patient: Patient, repo: RepoSettings, slot: list[Finding]) -> None:
    from artifactfs.doctor.remotes import check_remote

    async for finding in check_remote(patient, repo):
        slot.append(finding)
