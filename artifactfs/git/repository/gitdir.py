"""A gitdir of ours: made without starting git, and read without touching an object.

It is a normal partial clone (gitrepository-layout(5), partial-clone technical documentation) that
works without us. What we maintain beside it is in its folder ``artifactfs``: a config file that
the main one includes, markers, and packs that are still arriving.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artifactfs.errors import CorruptData, StateError
from artifactfs.git.command import run_git
from artifactfs.git.repository.refs import valid_ref
from artifactfs.git.repository.template import SAMPLE, copy_template
from artifactfs.git.surroundings import OWN_CONFIG_PATH, OWN_FOLDER, SETTINGS_FILE
from artifactfs.git.wire.credentials import CredentialFile, credential_helper
from artifactfs.git.wire.url import parse_remote
from artifactfs.system.files import begin_writing, replace_file, sync_path

Oid = bytes
_OID_BYTES = 20

_HISTORY_COMPLETE = "history-complete"
_COMMITS_COMPLETE = "commits-complete"
_TREES_TO_COME = "trees-to-come"
_PACKED_HEADER = "# pack-refs with: peeled fully-peeled sorted \n"


@dataclass(frozen=True, slots=True)
class GitdirPlan:
    """What a new gitdir says before it has objects.

    `url` is what git's configuration says, `reached_url` what that is rewritten to
    (``insteadOf``). `head` is a full branch name, or an oid for a detached HEAD. `refs` and
    `peeled` are written packed. `fetch` is the refspec of the remote, if any. `credentials` is
    None where git shall find its own. The rest is what the user's settings make of a new
    repository: see `NewRepository`, whose fields have these names.
    """

    remote: str
    url: str
    reached_url: str
    worktree: str
    head: str | Oid
    remote_head: str | None
    refs: Mapping[str, Oid]
    peeled: Mapping[str, Oid]
    fetch: str | None
    alternates: tuple[Path, ...]
    credentials: Path | None
    shallow: frozenset[Oid] = frozenset()
    template: Path | None = None
    committer: str | None = None
    logs_refs: bool = True
    rebases: bool = False


def write_gitdir(gitdir: Path, plan: GitdirPlan) -> None:
    """Make `gitdir`, which must not exist. Nothing is synced: see `sync_gitdir`.

    Raises: CorruptData, where a branch has a name that would lead elsewhere.
    """
    if isinstance(plan.head, str) and not valid_ref(plan.head):
        raise CorruptData(f"no branch can have the name {plan.head!r}")
    given = copy_template(plan.template, gitdir) if plan.template is not None else ""
    for folder in ("objects/pack", "objects/info", "refs/heads", "refs/tags", "info", "hooks"):
        (gitdir / folder).mkdir(parents=True, exist_ok=True)
    (gitdir / OWN_FOLDER).mkdir(mode=0o700)
    head = plan.head.hex() if isinstance(plan.head, bytes) else f"ref: {plan.head}"
    _write(gitdir / "HEAD", f"{head}\n")
    for name, text in (("description", "mounted by artifact-fs\n"), ("info/exclude", "")):
        if not os.path.lexists(gitdir / name):  # a link of the template may lead nowhere
            _write(gitdir / name, text)
    _write(gitdir / "objects/info/alternates", "".join(f"{path}\n" for path in plan.alternates))
    _write(gitdir / "packed-refs", packed_refs(plan.refs, plan.peeled))
    if plan.remote_head:
        path = gitdir / "refs/remotes" / plan.remote / "HEAD"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, f"ref: {plan.remote_head}\n")
    _write_reflogs(gitdir, plan)
    write_shallow(gitdir, plan.shallow)
    _write(gitdir / "config", given + _config(plan))
    write_own_config(gitdir, plan.reached_url, plan.credentials)


def _write_reflogs(gitdir: Path, plan: GitdirPlan) -> None:
    """What `git clone` writes down of HEAD, its branch and the remote's HEAD."""
    if plan.committer is None:
        return
    branch = plan.head if isinstance(plan.head, str) else None
    commit = plan.refs.get(branch) if branch is not None else plan.head
    if not isinstance(commit, bytes):
        return  # a branch without commits
    line = f"{'0' * 40} {commit.hex()} {plan.committer}\tclone: from {plan.url}\n"
    remote_head = f"refs/remotes/{plan.remote}/HEAD" if plan.remote_head else None
    for name in ("HEAD", branch, remote_head):
        if name is not None:
            path = gitdir / "logs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, line)


def sync_gitdir(gitdir: Path) -> None:
    """fsync what `write_gitdir` wrote; the packs were synced by who wrote them, and git's examples
    of hooks nobody misses.

    All of it is handed to the disk first: else each fsync would be a commit of the journal.
    """
    paths: list[str] = []
    for folder, _, names in os.walk(gitdir):
        if not folder.endswith("objects/pack"):
            own = [f"{folder}/{name}" for name in names if not name.endswith(SAMPLE)]
            paths += [path for path in own if os.path.isfile(path) and not os.path.islink(path)]
        paths.append(folder)
    for path in paths:
        begin_writing(path)
    for path in paths:
        sync_path(Path(path))


def publish(temporary: Path, gitdir: Path) -> None:
    """Put a complete gitdir in its place, in one step. Raises: StateError when one is there."""
    try:
        os.rename(temporary, gitdir)
    except OSError as error:
        raise StateError(f"{gitdir} is there already, and not empty") from error
    sync_path(gitdir.parent)


def packed_refs(refs: Mapping[str, Oid], peeled: Mapping[str, Oid]) -> str:
    """The content of ``packed-refs``."""
    lines = [_PACKED_HEADER]
    for name in sorted(refs, key=lambda name: name.encode("utf-8", "surrogateescape")):
        lines.append(f"{refs[name].hex()} {name}\n")
        if name in peeled:
            lines.append(f"^{peeled[name].hex()}\n")
    return "".join(lines)


def _config(plan: GitdirPlan) -> str:
    sections: list[tuple[str, list[tuple[str, str]]]] = [
        (
            "core",
            [
                ("repositoryformatversion", "1"),
                ("filemode", "true"),
                ("bare", "false"),
                *([("logallrefupdates", "true")] if plan.logs_refs else []),
                ("worktree", plan.worktree),
            ],
        ),
        ("extensions", [("partialClone", plan.remote)]),
        (
            f'remote "{_subsection(plan.remote)}"',
            [
                ("url", plan.url),
                *([("fetch", plan.fetch)] if plan.fetch else []),
                ("promisor", "true"),
                ("partialclonefilter", "blob:none"),
            ],
        ),
        # After each lazy fetch git would run its maintenance: 120 ms for every blob.
        ("gc", [("auto", "0")]),
        ("maintenance", [("auto", "false")]),
        # A pack of what is here has no full closure: with bitmaps `git gc` would fail.
        ("repack", [("writeBitmaps", "false")]),
    ]
    if isinstance(plan.head, str):
        branch = plan.head.removeprefix("refs/heads/")
        tracking = [("remote", plan.remote), ("merge", plan.head)]
        if plan.rebases:
            tracking.append(("rebase", "true"))
        sections.append((f'branch "{_subsection(branch)}"', tracking))
    sections.append(("include", [("path", OWN_CONFIG_PATH)]))
    return config_text(sections)


def _subsection(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')


def config_text(sections: Iterable[tuple[str, Iterable[tuple[str, str]]]]) -> str:
    """Sections in git-config(1) syntax; every value is quoted."""
    lines = []
    for section, values in sections:
        lines.append(f"[{section}]\n")
        for name, value in values:
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'\t{name} = "{escaped}"\n')
    return "".join(lines)


def write_own_config(gitdir: Path, url: str, credentials: Path | None) -> None:
    """The included config file: how git finds the credentials of `url`.

    Where the credential file knows the origin, it goes first: helpers of the user may hold a
    token for another repository of the same host. It is never written to by git, which would
    store there what other helpers know, and erase what a server refused once.

    `url` is the one that is reached. Settings that were kept with the repository are included.
    """
    sections: list[tuple[str, list[tuple[str, str]]]] = []
    if credentials is not None and (settings := credentials.with_name(SETTINGS_FILE)).exists():
        sections.append(("include", [("path", str(settings))]))
    remote = parse_remote(url)
    if credentials is not None and remote.is_http and CredentialFile(credentials).get(url):
        values = [
            ("helper", ""),
            ("helper", credential_helper(credentials)),
            ("useHttpPath", "false"),
        ]
        sections.append((f'credential "{remote.origin}"', values))
    text = config_text(sections)
    with suppress(OSError):
        if (gitdir / OWN_CONFIG_PATH).read_text("utf-8", "surrogateescape") == text:
            return
    _replace(gitdir / OWN_CONFIG_PATH, text)


def is_bare_worktree(folder: Path, gitdir: Path | None) -> bool:
    """Whether nothing is in `folder`, or only the gitfile that leads to `gitdir`, as `git init
    --separate-git-dir` makes it. Raises: OSError where it cannot be listed."""
    names = os.listdir(folder)
    if not names:
        return True
    if names != [".git"] or gitdir is None:
        return False
    try:
        text = (folder / ".git").read_text(errors="surrogateescape")
    except OSError:
        return False
    led_to = folder / text.removeprefix("gitdir:").strip()
    return text.startswith("gitdir:") and led_to.resolve() == gitdir.resolve()


async def set_remote(gitdir: Path, name: str, url: str) -> None:
    """Point the remote `name` at `url` (which has no userinfo). Raises: GitFailed."""
    await run_git("config", f"remote.{name}.url", url, gitdir=gitdir)


def read_shallow(gitdir: Path) -> frozenset[Oid]:
    """Commits whose parents were left out on request (``--depth``). Raises: CorruptData."""
    path = gitdir / "shallow"
    try:
        commits = frozenset(bytes.fromhex(line) for line in path.read_text("ascii").split())
    except FileNotFoundError:
        return frozenset()
    except ValueError:
        commits = frozenset((b"",))
    if any(len(oid) != _OID_BYTES for oid in commits):
        raise CorruptData(f"{path} is damaged", hint="artifact-fs doctor says what to do")
    return commits


def write_shallow(gitdir: Path, commits: frozenset[Oid]) -> None:
    """Replace ``shallow``; none removes it."""
    if commits:
        _replace(gitdir / "shallow", "".join(f"{oid.hex()}\n" for oid in sorted(commits)))
    else:
        (gitdir / "shallow").unlink(missing_ok=True)


def history_complete(gitdir: Path) -> bool:
    """Whether all commits and trees that the clone promised are here."""
    return (gitdir / OWN_FOLDER / _HISTORY_COMPLETE).exists()


def trees_to_come(gitdir: Path) -> Oid | None:
    """The tip (a commit, or a tag) of which only the root tree is here; None: all trees are."""
    try:
        return bytes.fromhex((gitdir / OWN_FOLDER / _TREES_TO_COME).read_text())
    except FileNotFoundError:
        return None


def mark_trees_to_come(gitdir: Path, tip: Oid) -> None:
    _replace(gitdir / OWN_FOLDER / _TREES_TO_COME, tip.hex())


def mark_trees_here(gitdir: Path) -> None:
    (gitdir / OWN_FOLDER / _TREES_TO_COME).unlink(missing_ok=True)


def commits_complete(gitdir: Path) -> bool:
    """Whether all commits are here; of the trees some may be missing."""
    return (gitdir / OWN_FOLDER / _COMMITS_COMPLETE).exists()


def mark_commits_complete(gitdir: Path) -> None:
    _replace(gitdir / OWN_FOLDER / _COMMITS_COMPLETE, "")


def mark_history_complete(gitdir: Path) -> None:
    _replace(gitdir / OWN_FOLDER / _HISTORY_COMPLETE, "")


def adopt_packs(source: Path, objects: Path) -> None:
    """Move complete packs from ``source/pack``, each index last: git takes that for the pack."""
    for index in (source / "pack").glob("pack-*.idx"):
        names = [path for path in index.parent.glob(f"{index.stem}.*") if path != index]
        for path in [*names, index]:
            os.replace(path, objects / "pack" / path.name)
    sync_path(objects / "pack")


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text)
