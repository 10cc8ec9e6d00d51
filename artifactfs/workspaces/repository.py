"""Git in a workspace, with its user's own configuration: status, commit, push, diff, grep.

Blocks; git has a deadline, and can be stopped (`running`).
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from artifactfs.errors import InvalidInput, StateError
from artifactfs.git.command import last_message
from artifactfs.git.repository.refs import PUSHED
from artifactfs.redact import foreign_text
from artifactfs.workspaces.results import Change, Match, Pushed
from artifactfs.workspaces.running import TIMED_OUT, capture, command_environment

LOCAL_S = 120.0
"""For what needs no network, or little of it: contents that are read."""
NETWORK_S = 600.0
_MOST_MATCHES = 10_000


class GitRefused(StateError):
    """Git in a workspace ended with an error; the message is its own."""


@dataclass(frozen=True, slots=True)
class Repository:
    """Git with the working tree at `path`. `author`: ``Name <email>``, None for git's own."""

    path: str
    author: str | None = None

    def git(
        self,
        *arguments: str,
        deadline_s: float = LOCAL_S,
        more: Mapping[str, str] | None = None,
        given: bytes | None = None,
        codes: Sequence[int] = (0,),
    ) -> bytes:
        """Run ``git ARGUMENTS`` and return its output. Raises: GitRefused, Stopped."""
        environment = command_environment({"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"})
        done = capture(
            ["git", "-C", self.path, *arguments],
            environment=environment | dict(more or {}),
            given=given,
            timeout_s=deadline_s,
        )
        if done.code in codes:
            return done.output
        verb = next((a for a in arguments if not a.startswith("-") and "=" not in a), "git")
        if done.code == TIMED_OUT:
            raise GitRefused(f"git {verb} did not end within {deadline_s:g} s")
        said = foreign_text(done.errors)
        raise GitRefused(f"git {verb}: {last_message(said) or f'exit code {done.code}'}")

    def line(self, *arguments: str, more: Mapping[str, str] | None = None) -> str:
        """The one line that git prints. Raises: GitRefused."""
        return self.git(*arguments, more=more).decode("utf-8", "replace").strip()

    def head(self) -> str | None:
        """The commit of HEAD (hex); None before the first."""
        try:
            return self.line("rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        except GitRefused:
            return None

    def branch(self) -> str | None:
        """The current branch; None where HEAD is detached."""
        try:
            return self.line("symbolic-ref", "--quiet", "--short", "HEAD")
        except GitRefused:
            return None

    def switch_to(self, branch: str) -> None:
        """To `branch`, made at HEAD where there is none. Raises: GitRefused, InvalidInput."""
        if branch.startswith("-"):
            raise InvalidInput(f"{branch!r} is not a branch name")
        if self.branch() == branch:
            return
        try:
            self.git("switch", "-q", "--no-guess", "-c", branch)
        except GitRefused:
            self.git("switch", "-q", "--no-guess", branch)

    def changes(self) -> tuple[Change, ...]:
        """What differs from HEAD; ignored files do not count."""
        found = self._status()
        new = [change.path for change in found if change.path.endswith("/")]
        if not new:
            return found
        others = ("ls-files", "-z", "--others", "--exclude-standard", "--", *new)
        files = _entries(self.git(*others, more=_LITERAL))
        known = [change for change in found if not change.path.endswith("/")]
        return (*known, *(Change(path, "??") for path in files))

    def stage(self, more: Mapping[str, str] | None = None) -> bool:
        """Bring the index (that of `more`) to what the working tree is; whether anything differs
        from HEAD.

        As ``git add -A``, which reads every folder: what has changed, status knows from its caches.
        Raises: GitRefused.
        """
        paths = [change.path for change in self._status()]
        files = [path for path in paths if not path.endswith("/")]
        folders = [path for path in paths if path.endswith("/")]
        if files:
            update = ("update-index", "-z", "--add", "--remove", "--replace", "--stdin")
            self.git(*update, given=_joined(files), more=more, deadline_s=NETWORK_S)
        if folders:
            add = ("-c", "advice.addEmbeddedRepo=false", "add", "-A", "--pathspec-from-file=-")
            environment = _LITERAL | dict(more or {})
            given = _joined(folders)
            self.git(*add, "--pathspec-file-nul", given=given, more=environment)
        return bool(paths)

    def _differs_from_head(self, paths: Sequence[str]) -> bool:
        """Whether the index does; the working tree is not looked at."""
        try:
            return bool(self.git("diff-index", "--cached", "--name-only", "HEAD", "--", *paths))
        except GitRefused:  # there is no HEAD yet
            return bool(self.git("status", "--porcelain=v1", "-uno", "--", *paths))

    def _status(self) -> tuple[Change, ...]:
        """A new folder, in which git knows nothing, is one change: its path ends in a slash."""
        status = ("status", "--porcelain=v1", "-z", "--no-renames", "-unormal")
        listed = _entries(self.git(*status, more={"GIT_OPTIONAL_LOCKS": "0"}))
        return tuple(Change(entry[3:], entry[:2]) for entry in listed)

    def commit(self, message: str, paths: Sequence[str], *, hooks: bool) -> str | None:
        """Commit `paths`, everything where there are none; the commit, None if nothing differs.

        Raises: GitRefused.
        """
        options = () if hooks else ("--no-verify",)
        identity = self.identity()
        if paths:
            self.git("add", "-A", "--", *paths)
        elif not self.stage():
            return None
        only = ("--only", "--", *paths) if paths else ()
        if not self._differs_from_head(paths):
            return None
        self.git(
            *("commit", "-q", "-F", "-", *options, *only),
            deadline_s=NETWORK_S,  # hooks, signatures
            given=message.encode(),
            more=identity,
        )
        return self.head()

    def push(self, branch: str | None, *, force: bool) -> Pushed:
        """HEAD to `branch` of the remote, else to the one of the current branch's name.

        `force` overwrites what this workspace has seen there, and nothing newer. Raises:
        GitRefused with the remote's words, InvalidInput where there is no name.
        """
        name = branch or self.branch()
        if not name or name.startswith(("-", "+")) or ":" in name:
            raise InvalidInput(
                "there is no branch to push to" if not name else f"{name!r} is not a branch name",
                hint="HEAD is detached: name a branch" if not name else None,
            )
        ref = name if name.startswith("refs/") else f"refs/heads/{name}"
        options = ("--force-with-lease",) if force else ()
        self.git("push", "-q", *options, self.remote(), f"HEAD:{ref}", deadline_s=NETWORK_S)
        head = self.head() or ""
        # A clone with --depth has no remote-tracking branch for it, by which git would know.
        self.git("update-ref", PUSHED + ref.removeprefix("refs/"), head)
        return Pushed(ref, head)

    def remote(self) -> str:
        """The one that was mounted (``clone.defaultRemoteName`` may call it otherwise); others may
        have been added. Raises: GitRefused."""
        names = self.line("remote").splitlines()
        if not names:
            raise GitRefused("the workspace has no remote", hint="git remote add origin URL")
        return "origin" if "origin" in names else names[0]

    def grep(
        self, pattern: str, paths: Sequence[str], *, fixed: bool, ignore_case: bool
    ) -> tuple[Match, ...]:
        """Lines of text files, new ones too, that `pattern` is found in: at most 10,000.

        Raises: GitRefused.
        """
        options = ["-F" if fixed else "-E", *(["-i"] if ignore_case else [])]
        found = self.git(
            *("grep", "-n", "-I", "-z", "--no-color", "--untracked", *options, "-e", pattern),
            *("--", *paths),
            codes=(0, 1),
            deadline_s=NETWORK_S,
        )
        lines = found.decode("utf-8", "replace").split("\n")[:_MOST_MATCHES]
        return tuple(Match(*_match(line)) for line in lines if line.count("\0") >= 2)

    def diff(self, base: str, tree: str, paths: Sequence[str]) -> str:
        """From one commit or tree to another, as a patch that ``git apply`` takes."""
        listed = self.git(
            *("diff", "--binary", "--no-color", "--no-ext-diff", base, tree, "--", *paths),
            deadline_s=NETWORK_S,
        )
        return listed.decode("utf-8", "replace")

    def identity(self) -> dict[str, str]:
        """The variables of whoever commits: `author`, git's own, or one made of the machine."""
        if self.author is not None:
            name, found, email = self.author.strip().partition(" <")
            if not found or not email.endswith(">"):
                raise InvalidInput(
                    f"author={self.author!r} names nobody", hint="give it as Name <email>"
                )
            return _identity(name, email.removesuffix(">"))
        try:
            self.git("var", "GIT_AUTHOR_IDENT")
            self.git("var", "GIT_COMMITTER_IDENT")
        except GitRefused:
            return _identity(_user(), f"{_user()}@{socket.gethostname() or 'localhost'}")
        return {}


_LITERAL = {"GIT_LITERAL_PATHSPECS": "1"}


def _entries(listed: bytes) -> list[str]:
    return [entry for entry in listed.decode("utf-8", "surrogateescape").split("\0") if entry]


def _joined(paths: Sequence[str]) -> bytes:
    return "\0".join(paths).encode("utf-8", "surrogateescape") + b"\0"


def _identity(name: str, email: str) -> dict[str, str]:
    return {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email))
    }


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return "agent"


def _match(line: str) -> tuple[str, int, str]:
    path, number, text = line.split("\0", 2)
    return path, int(number), text
