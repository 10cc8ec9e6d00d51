"""Adding and removing a repository so that a failure leaves nothing behind.

`Reservation` does what comes before the clone: it checks the name and the mount point, makes
``STATE/repos/NAME`` (the directory is the lock on the name) with the 0600 credentials in it, and
the mount point. Then either `commit` registers, or `roll_back` takes everything away again. A
marker file in the directory tells a reservation that was cut short by a crash from real data. A
directory that no row names any more, as after the loss of the registry, is taken over with what is
in it where it is of the same remote.

Synchronous: the daemon calls it in a thread.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from artifactfs.config import RepoSettings
from artifactfs.daemon.host import mounts
from artifactfs.daemon.repositories.registry import Registration, Registry, name_taken
from artifactfs.errors import (
    AlreadyExists,
    InvalidInput,
    MountError,
    NotRegistered,
    StateError,
)
from artifactfs.git.configuration.capture import login_key
from artifactfs.git.repository.gitdir import is_bare_worktree
from artifactfs.git.surroundings import NOTHING, Surroundings, decoded, load, store
from artifactfs.git.wire.credentials import CredentialFile
from artifactfs.git.wire.url import parse_remote
from artifactfs.paths import RepoLayout, StateLayout, check_repo_name, real_path
from artifactfs.redact import redact
from artifactfs.system.files import sync_path
from artifactfs.system.fuse_device import FUSE_DEVICE, let_in
from artifactfs.system.processes import start_time_of

MARKER = "adding"


@dataclass(frozen=True, slots=True)
class Secret:
    """What a command knows of a remote that only its owner may read, on its way to files of 0600.

    Credentials (`password` None: none) for `url`, which is the one that is reached; and what its
    environment says to git.
    """

    username: str = ""
    password: str | None = field(default=None, repr=False)
    url: str = ""
    surroundings: Surroundings = field(default_factory=Surroundings, repr=False)

    @classmethod
    def from_fields(cls, fields: object, *, here: Mapping[str, str] | None = None) -> Self | None:
        """What a request has; None for nothing. Raises: InvalidInput.

        Variables that the environment `here` has as well are not kept.
        """
        if not isinstance(fields, dict):
            return None
        password = fields.get("password")
        try:
            given = decoded(fields.get("surroundings") or NOTHING)
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidInput(f"unusable surroundings: {error}") from error
        return cls(
            str(fields.get("username") or ""),
            None if password is None else str(password),
            str(fields.get("url") or ""),
            given if here is None else given.beyond(here),
        )


def keep(layout: RepoLayout, secret: Secret | None, url: str) -> None:
    """Write the files. What was kept before and is not given again stays. Raises: StateError,
    InvalidInput."""
    if secret is None:
        return
    try:
        kept = known = load(layout.git_environment)
        if secret.password is not None:
            reached = parse_remote(secret.url or url)
            file = CredentialFile(layout.credentials)
            file.set(reached.url, secret.username, secret.password)
            kept = kept.without(login_key(reached))  # that login has another password
        kept = secret.surroundings.over(kept)
        if kept != known:
            store(layout.git_environment, kept)
    except OSError as error:
        raise StateError(f"cannot store the credentials: {error.strerror}") from error


def check_fuse() -> None:
    """Raises: MountError when this machine cannot mount."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError as error:
        raise MountError(
            f"{FUSE_DEVICE} is missing",
            hint="load the kernel module (modprobe fuse); in a container, start it with "
            "--device /dev/fuse --cap-add SYS_ADMIN",
        ) from error
    except OSError as error:
        raise MountError(
            f"cannot open {FUSE_DEVICE}: {error.strerror}",
            hint="a container needs --device /dev/fuse --cap-add SYS_ADMIN; a user who is not root"
            f" a group, {let_in()}",
        ) from error
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not installed", hint="install the package fuse3")


def resolve_mount_point(settings: RepoSettings, mount_root: Path) -> str:
    """Where it is mounted: a relative mount point lies below the daemon's `mount_root`."""
    return os.path.normpath(mount_root / settings.mount_point)


def check_mount_point(mount_point: Path, state: StateLayout, *, gitdir: Path | None = None) -> None:
    """Raises: MountError, InvalidInput unless a mount can be made there (dead mounts count as
    free: they are cleared; and so does what has only a gitfile of `gitdir`)."""
    point, root = Path(real_path(str(mount_point))), state.root.resolve()
    for inner, outer in ((point, root), (root, point)):
        if inner == outer or outer in inner.parents:
            raise InvalidInput(
                f"the mount point {mount_point} and the state root {state.root} overlap",
                hint="choose another --mount-root or --state-root",
            )
    if mounts.probe(str(mount_point)) is mounts.MountState.ALIVE:
        raise MountError(
            f"{mount_point} is a mount point that is in use",
            hint=f"unmount it (umount {mount_point}), or choose another --mount-root or --name",
        )
    try:
        if not is_bare_worktree(mount_point, gitdir):
            raise MountError(
                f"{mount_point} is not empty",
                hint="choose another --mount-root or --name, or empty it first",
            )
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise MountError(
            f"{mount_point} is not a directory", hint="choose another --mount-root or --name"
        ) from error
    except PermissionError as error:
        raise MountError(f"{mount_point}: {error.strerror}") from error
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise MountError(f"{mount_point}: {error.strerror}") from error


def check_apart(mount_point: Path, other_name: str, other_mount_point: str) -> None:
    """Raises: AlreadyExists if `mount_point` is that of another repository, or within it."""
    other = Path(other_mount_point)
    if mount_point == other or other in mount_point.parents:
        where = "is" if mount_point == other else "lies within"
        raise AlreadyExists(
            f"{mount_point} {where} the mount point of {other_name!r}",
            hint="choose another --mount-root or --name",
        )


_FIXED = {
    "ref": "--ref or --branch",
    "depth": "--depth",
    "follow": "--follow",
    "require_commit": "--require-commit",
    "git_dir": "--git-dir",
}
"""What is decided with the clone."""


def registered(state: StateLayout, name: str) -> Registration | None:
    """The whole row of `name`, None where there is none or it is damaged. Blocks on the disk."""
    if not state.registry_db.exists():
        return None
    with Registry(state.registry_db) as registry:
        found = [one for one in registry.all() if one.name == name and one.damaged is None]
    return found[0] if found else None


def once_more(known: RepoSettings, wanted: RepoSettings) -> RepoSettings:
    """The settings of what is added again: `wanted`; it stays where it is unless it says where.

    Raises: NameTaken, AlreadyExists unless it is the `known` one with other options.
    """
    if wanted.remote != known.remote:
        raise name_taken(known.name)
    for field_name, option in _FIXED.items():
        if getattr(known, field_name) != getattr(wanted, field_name):
            raise AlreadyExists(
                f"{known.name} is registered with another {option}",
                hint=f"artifact-fs switch moves it to another branch or commit; to begin anew: "
                f"artifact-fs remove-repo --name {known.name}",
            )
    if os.path.isabs(known.mount_point) and not os.path.isabs(wanted.mount_point):
        return replace(wanted, mount_point=known.mount_point)
    return wanted


def make_mount_point(mount_point: Path) -> list[Path]:
    """Create it; return the directories that were made, outermost first. Raises: MountError."""
    made: list[Path] = []
    try:
        for directory in (*reversed(mount_point.parents), mount_point):
            try:
                directory.mkdir()
            except FileExistsError:
                continue
            made.append(directory)
    except OSError as error:
        remove_directories(made)
        raise MountError(
            f"cannot create {mount_point}: {error.strerror}",
            hint="choose a --mount-root that you may write to",
        ) from error
    return made


def remove_directories(made: Iterable[Path]) -> None:
    """Remove the empty ones among directories that `make_mount_point` made."""
    for directory in reversed(list(made)):
        try:
            directory.rmdir()
        except OSError:
            return  # somebody uses it by now, and so its parents


class Reservation:
    """A name and a mount point that are being added."""

    def __init__(self, state: StateLayout, settings: RepoSettings, mount_point: Path) -> None:
        """Reserve. Raises: InvalidInput, AlreadyExists, MountError, StateError."""
        self._state = state
        self._settings = settings
        self._registered = False
        self.taken_over = False
        """The directory was there, with a clone of the same remote in it."""
        self._made: list[Path] = []
        check_repo_name(settings.name)
        self.layout = state.repo(settings.name)
        with Registry(state.registry_db) as registry:
            self._check_free(registry, mount_point)
            gitdir = Path(settings.git_dir) if settings.git_dir is not None else None
            check_mount_point(mount_point, state, gitdir=gitdir)
            self._take_directory(registry)
        try:
            if mounts.probe(str(mount_point)) is mounts.MountState.DEAD:
                mounts.clear_dead(str(mount_point))
            self._made = make_mount_point(mount_point)
        except BaseException:
            self.roll_back()
            raise

    def _check_free(self, registry: Registry, mount_point: Path) -> None:
        for registration in registry.all():
            if registration.damaged is not None:
                continue
            if registration.name == self._settings.name:
                raise name_taken(self._settings.name)
            check_apart(mount_point, registration.name, registration.settings.mount_point)

    def _take_directory(self, registry: Registry) -> None:
        directory = self.layout.directory
        try:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (directory / MARKER).exists() and not is_being_added(directory):
                known = {registration.name for registration in registry.all()}
                if self._settings.name in known:  # its row is damaged, its data is not
                    forget_adding(directory)
                if (directory / MARKER).exists():
                    shutil.rmtree(directory)  # left by a crash in the middle of adding or removing
            directory.mkdir(mode=0o700)
            (directory / MARKER).write_text(f"{os.getpid()} {start_time_of(os.getpid())}\n")
        except FileExistsError as error:
            if (directory / MARKER).exists():
                raise name_taken(self._settings.name) from error
            self._take_over(directory)
        except OSError as error:
            raise StateError(f"cannot create {directory}: {error.strerror}") from error

    def _take_over(self, directory: Path) -> None:
        """Raises: AlreadyExists."""
        remotes = remotes_of(self.layout.gitdir)
        if self._settings.remote not in remotes:
            known = f" and a clone of {redact(remotes[0])}" if remotes else ""
            raise AlreadyExists(
                f"{directory} exists{known}, but is not registered",
                hint="give that remote to register it again, or move it away",
            )
        self.taken_over = True

    def store(self, secret: Secret | None) -> None:
        """Write what is secret. Raises: InvalidInput, StateError."""
        keep(self.layout, secret, self._settings.remote)

    def commit(self, *, mounted: bool = False) -> None:
        """Register it. Raises: AlreadyExists."""
        with Registry(self._state.registry_db) as registry:
            registry.add(self._settings, mounted=mounted)
        self._registered = True
        (self.layout.directory / MARKER).unlink(missing_ok=True)
        sync_path(self.layout.directory)

    def roll_back(self) -> None:
        """Take everything away again; the mount must be gone."""
        if self._registered:
            with Registry(self._state.registry_db) as registry:
                registry.remove(self._settings.name)
        if not self.taken_over:
            shutil.rmtree(self.layout.directory, ignore_errors=True)
        remove_directories(self._made)


def remotes_of(gitdir: Path) -> list[str]:
    """The URLs of the remotes of a gitdir, none where it cannot be read."""
    config = ("config", "--file", str(gitdir / "config"))
    options = (*config, "-z", "--get-regexp", r"^remote\..*\.url$")
    done = subprocess.run(
        ["git", *options], capture_output=True, text=True, errors="surrogateescape", check=False
    )
    return [entry.partition("\n")[2] for entry in done.stdout.split("\0") if entry]


def is_being_added(directory: Path) -> bool:
    """Whether the process that reserved `directory` still lives.

    By its number and the time of its start: a container's processes get the same numbers again.
    """
    try:
        pid, start = (directory / MARKER).read_text().split()
        return start == start_time_of(int(pid))
    except (OSError, ValueError):
        return False


def forget_adding(directory: Path) -> None:
    """Of a repository that is registered: a crash came after that, before the marker was removed.
    An empty one stays: see `delete`. Raises: OSError."""
    marker = directory / MARKER
    with suppress(FileNotFoundError):
        if marker.stat().st_size > 0 and not is_being_added(directory):
            marker.unlink()
            sync_path(directory)


def delete(state: StateLayout, name: str, mount_point: Path) -> None:
    """Forget a repository and delete its data; its mount must be gone. Raises: StateError.

    The directory goes first: if that is cut short, the repository is still registered and
    removing it again finishes the job.
    """
    directory = state.repo(name).directory
    try:
        if directory.exists():
            (directory / MARKER).touch()  # empty: on a full disk there is no room for a word
            shutil.rmtree(directory)
    except OSError as error:
        raise StateError(f"cannot remove {directory}: {error.strerror or error}") from error
    with Registry(state.registry_db) as registry:
        try:
            registry.remove(name)
        except NotRegistered:
            return
    remove_directories([mount_point])
