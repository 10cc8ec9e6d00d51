"""The state root: its disk, its permissions, its databases and gitdirs."""

from __future__ import annotations

import os
import pwd
import shlex
import sqlite3
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from artifactfs.config import RepoSettings
from artifactfs.daemon.repositories.losses import overlay_faults
from artifactfs.doctor.finding import Finding, Patient, Severity, note, ok, problem, warning
from artifactfs.git.apart import git_environment, gitdir_environment
from artifactfs.git.repository.soundness import Fault
from artifactfs.git.repository.soundness import faults as gitdir_faults
from artifactfs.paths import RepoLayout, StateLayout
from artifactfs.system.mountinfo import file_system_of

LEAST_BYTES = 64 << 20
"""Below this a clone or a commit of the overlay fails any moment."""
FEW_BYTES = 1 << 30
LEAST_INODES = 256
FEW_INODES = 10_000

OLD_LOCK_S = 600.0

_REMOTE_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "virtiofs"})
_PACK_TRAILER = 20
_IDX_TRAILER = 40


def check_state_root(patient: Patient) -> Iterator[Finding]:
    """Where it is, whose it is, who may look in."""
    root = patient.state.root
    try:
        found = root.stat()
    except FileNotFoundError:
        yield note("state.absent", f"{root} does not exist yet: nothing is registered")
        return
    except PermissionError:
        yield problem(
            "state.unreadable",
            f"{root} cannot be read by this user",
            "run artifact-fs as the user who owns it, or set ARTIFACT_FS_ROOT",
        )
        return
    quoted = shlex.quote(str(root))
    if not stat.S_ISDIR(found.st_mode):
        yield problem(
            "state.not-a-directory", f"{root} is not a directory", f"mv {quoted} {quoted}.old"
        )
        return
    if not os.access(root, os.W_OK | os.X_OK):
        yield problem(
            "state.not-writable",
            f"{root} belongs to {_user(found.st_uid)} and cannot be written by this user",
            f"sudo chown -R {_user(os.geteuid())} {quoted}",
        )
        return
    if found.st_mode & 0o066:  # who may only pass sees nothing: the user of a tree (--uid)
        yield problem(
            "state.open-to-others",
            f"{root} has mode {stat.S_IMODE(found.st_mode):04o}: others see into it",
            f"chmod 0700 {quoted}",
        )
    else:
        yield ok("state.root", f"{root} is private and writable")
    yield from _check_place(patient.state)


def _check_place(state: StateLayout) -> Iterator[Finding]:
    kind = file_system_of(state.root)
    if kind in _REMOTE_FILE_SYSTEMS:
        yield warning(
            "state.network-disk",
            f"{state.root} is on {kind}: SQLite's locks and WAL are not safe there",
            "export ARTIFACT_FS_ROOT=/a/local/disk",
        )
    elif kind in ("tmpfs", "ramfs"):
        yield warning(
            "state.in-memory",
            f"{state.root} is on {kind}: work that was not pushed is lost at a reboot",
            "export ARTIFACT_FS_ROOT=/a/local/disk",
        )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def check_space(patient: Patient) -> Iterator[Finding]:
    """Free bytes and inodes of the file system under the state root."""
    root = patient.state.root
    if not root.exists():
        return
    disk = os.statvfs(root)
    free = disk.f_bavail * disk.f_frsize
    mend = "artifact-fs evict-cache --max-bytes 0"
    if free < LEAST_BYTES:
        yield problem("disk.full", f"{root}: {_mebibytes(free)} free", mend)
    elif free < FEW_BYTES:
        yield warning("disk.low", f"{root}: {_mebibytes(free)} free", mend)
    else:
        yield ok("disk.space", f"{root}: {_mebibytes(free)} free")
    if disk.f_files == 0:  # the file system has no table of inodes (btrfs, for one)
        return
    if disk.f_favail < LEAST_INODES:
        yield problem("disk.no-inodes", f"{root}: {disk.f_favail} inodes free", mend)
    elif disk.f_favail < FEW_INODES:
        yield warning("disk.few-inodes", f"{root}: {disk.f_favail} inodes free", mend)


def _mebibytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def check_databases(patient: Patient) -> Iterator[Finding]:
    """``PRAGMA quick_check`` (with --deep: ``integrity_check``) of every database."""
    state = patient.state
    yield from _check_database(
        state.registry_db,
        "registry",
        None,
        patient.deep,
        "stop the daemon, move the file away, and run add-repo again for each directory of "
        f"{shlex.quote(str(state.repos))}",
    )
    yield from _check_database(
        state.sizes_db,
        "sizes",
        None,
        patient.deep,
        f"stop the daemon, then: rm {shlex.quote(str(state.sizes_db))}*  (it is only a cache)",
    )
    for repo in patient.repos:
        yield from _check_overlay(patient, state.repo(repo.name), repo.name)


def _check_overlay(patient: Patient, layout: RepoLayout, name: str) -> Iterator[Finding]:
    """What SQLite says of the database, and what a mount would: for SQLite an empty file is a sound
    database."""
    database = layout.overlay_db
    copy = shlex.quote(f"{database}.damaged")
    recover = (
        f"artifact-fs unmount --name {name} && cp {shlex.quote(str(database))} {copy} && "
        f"sqlite3 {copy} .recover | sqlite3 {shlex.quote(str(database))}.recovered"
    )
    found = list(_check_database(database, "overlay", name, patient.deep, recover))
    if all(finding.severity is not Severity.PROBLEM for finding in found):
        faults = list(overlay_faults(layout))
        if faults:
            code = "database.overlay-damaged"
            found = [problem(code, one.message, one.hint or recover, name) for one in faults]
    yield from found


def _check_database(
    path: Path, name: str, repo: str | None, deep: bool, mend: str
) -> Iterator[Finding]:
    if not path.exists():
        return
    pragma = "integrity_check" if deep else "quick_check"
    try:
        said = _ask_database(f"{path.as_uri()}?mode=ro", pragma, wait_s=0.1 if repo else 5)
    except sqlite3.OperationalError as error:  # of a mounted one: nobody else may look
        unchanging = _ask_unchanging(path, pragma)
        if unchanging is None:
            yield note(f"database.{name}-busy", f"{path} was not checked: {error}", repo=repo)
            return
        said = unchanging
    except sqlite3.DatabaseError as error:
        said = [str(error)]
    if said == ["ok"]:
        yield ok(f"database.{name}", f"{path} is sound", repo)
    else:
        yield problem(
            f"database.{name}-damaged", f"{path} is damaged: {'; '.join(said)}", mend, repo
        )


def _ask_database(uri: str, pragma: str, wait_s: float = 5) -> list[str]:
    with closing(sqlite3.connect(uri, uri=True, timeout=wait_s)) as database:
        return [str(row[0]) for row in database.execute(f"PRAGMA {pragma}(3)")]


def _ask_unchanging(path: Path, pragma: str) -> list[str] | None:
    """The same of a database that cannot be opened: none can in WAL mode on a full disk, where the
    file beside it cannot be made, nor can that of a mount. None where it is in use and seems to be
    damaged: it may have been written to meanwhile.
    """
    wal = path.with_name(f"{path.name}-wal")
    in_use = wal.exists() and wal.stat().st_size > 0
    try:
        said = _ask_database(f"{path.as_uri()}?mode=ro&immutable=1", pragma)
    except sqlite3.OperationalError:
        return None
    except sqlite3.DatabaseError as error:
        said = [str(error)]
    return None if in_use and said != ["ok"] else said


def check_gitdirs(patient: Patient) -> Iterator[Finding]:
    """Each gitdir opens, its HEAD leads somewhere, its alternate is there, its packs are whole."""
    for repo in patient.repos:
        layout = patient.state.repo(repo.name)
        gitdir = Path(repo.git_dir) if repo.git_dir else layout.gitdir
        if gitdir.exists():
            yield from _check_gitdir(patient, repo, layout, gitdir)
    if patient.state.shared_objects.is_dir():
        yield from _check_packs(patient, patient.state.shared_objects, None)


def _check_gitdir(
    patient: Patient, repo: RepoSettings, layout: RepoLayout, gitdir: Path
) -> Iterator[Finding]:
    quoted = shlex.quote(str(gitdir))
    alternates = gitdir / "objects" / "info" / "alternates"
    for line in alternates.read_text(errors="replace").splitlines() if alternates.exists() else ():
        place = gitdir / "objects" / line
        if line and not line.startswith("#") and not place.is_dir():
            yield problem(
                "gitdir.alternate-missing",
                f"{alternates} names {line}, which does not exist",
                f"mkdir -p {shlex.quote(str(place))}",
                repo.name,
            )
            return
    yield from _locks_left(gitdir, repo.name)
    found = [
        problem(_code_of(fault), str(fault), fault.mend, repo.name)
        for fault in gitdir_faults(gitdir)
        if not (fault.path.name == "index" and not patient.deep and _is_locked(gitdir))
    ]
    if patient.deep and not found:
        found = list(_check_packs(patient, gitdir / "objects", repo.name))
    if found:  # what is wrong with HEAD then follows from them
        yield from found
        return
    head = _git(gitdir, "rev-parse", "--verify", "--quiet", "HEAD^{tree}")
    if head.returncode != 0 and head.stderr:  # git refuses a file that its configuration includes
        yield problem(
            "gitdir.file-damaged",
            f"{gitdir}: git says: {head.stderr.strip().splitlines()[-1]}",
            f"artifact-fs remount --name {repo.name}  (files of ours are made anew at each start)",
            repo.name,
        )
        return
    if head.returncode != 0:
        yield problem(
            "gitdir.head-broken",
            f"{gitdir}: HEAD leads to no commit that is here",
            f"git --git-dir={quoted} fetch --all && git --git-dir={quoted} symbolic-ref HEAD",
            repo.name,
        )
        return
    yield ok(
        "gitdir.sound",
        f"{gitdir} opens, HEAD^{{tree}} is {head.stdout.strip()[:12]}",
        repo.name,
    )


def _locks_left(gitdir: Path, name: str) -> Iterator[Finding]:
    """Locks of git, which last as long as a command. (``git commit`` waits for its editor.)"""
    for path in (*gitdir.glob("*.lock"), *(gitdir / "refs").rglob("*.lock")):
        try:
            age_s = time.time() - path.stat().st_mtime
        except FileNotFoundError:
            continue
        if age_s > OLD_LOCK_S:
            yield warning(
                "gitdir.lock-left",
                f"{path} is {age_s / 60:.0f} min old: git refuses to write what it locks",
                f"unless a git command still runs: rm {shlex.quote(str(path))}",
                name,
            )


def _code_of(fault: Fault) -> str:
    return f"gitdir.{'pack' if fault.path.parent.name == 'pack' else 'file'}-damaged"


def _is_locked(gitdir: Path) -> bool:
    """Whether git is writing its index."""
    return (gitdir / "index.lock").exists()


def _git(gitdir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", f"--git-dir={gitdir}", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env=gitdir_environment(gitdir, make=False),
        timeout=20,
        check=False,
    )


def _check_packs(patient: Patient, objects: Path, repo: str | None) -> Iterator[Finding]:
    """Compare each pack's own checksum with the one its index carries; --deep recomputes all."""
    for pack in sorted((objects / "pack").glob("pack-*.pack")):
        index = pack.with_suffix(".idx")
        if not index.exists():
            continue  # being written, or left over from a crash: `artifact-fs gc` removes it
        fault = _pack_fault(pack, index)
        if fault is None and patient.deep:
            fault = _deep_pack_fault(objects, index)
        if fault is not None:
            stem = shlex.quote(str(pack.with_suffix("")))
            yield problem(
                "gitdir.pack-damaged",
                f"{pack}: {fault}",
                f"rm {stem}.idx {stem}.pack  (its objects are fetched again)",
                repo,
            )


def _pack_fault(pack: Path, index: Path) -> str | None:
    """Implements the trailers of gitformat-pack: O(1) for a pack of any size."""
    try:
        with pack.open("rb") as file:
            signature, version, _count = struct.unpack(">4sII", file.read(12))
            file.seek(-_PACK_TRAILER, os.SEEK_END)
            checksum = file.read(_PACK_TRAILER)
        with index.open("rb") as file:
            file.seek(-_IDX_TRAILER, os.SEEK_END)
            expected = file.read(_PACK_TRAILER)
    except (OSError, struct.error) as error:
        return f"cannot be read ({error})"
    if signature != b"PACK" or version not in (2, 3):
        return "has no pack header"
    return None if checksum == expected else "does not end with the checksum its index names"


def _deep_pack_fault(objects: Path, index: Path) -> str | None:
    verified = subprocess.run(
        ["git", "verify-pack", str(index)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd="/",
        env=git_environment({"GIT_DIR": str(index.parent)}),
        check=False,
    )
    return None if verified.returncode == 0 else verified.stderr.strip().splitlines()[-1]
