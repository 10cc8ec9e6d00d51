"""Which remote of a gitdir a mount fetches from, and where its refs go.

`git remote rename` and `git remote add` are the user's: the remote that was cloned may be called
``upstream`` by now, and ``origin`` be another repository. What marks ours is ``promisor = true`` in
its section, which moves along with the section.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from artifactfs.git.command import GitFailed, run_git

DEFAULT_NAME = "origin"
_HEADS = "refs/heads/"
_TAGS = "refs/tags/"
_TRUE = ("true", "yes", "on", "1")
_DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True)
class Refspec:
    """One line of ``remote.NAME.fetch`` (git-fetch(1)). `target` is None where nothing is kept;
    a `negative` one takes names away from the others."""

    source: str
    target: str | None
    negative: bool = False

    def local(self, name: str) -> str | None:
        """Where the remote's ref `name` goes; None where it does not go anywhere."""
        return _mapped(name, self.source, self.target) if self.target is not None else None

    def covers(self, name: str) -> bool:
        """Whether `name` is a ref of the remote that this line speaks of."""
        return _mapped(name, self.source, self.source) is not None

    def owns(self, name: str) -> bool:
        """Whether the local ref `name` is one that this line makes."""
        return self.target is not None and _mapped(name, self.target, self.target) is not None


def parse_refspec(text: str) -> Refspec:
    """Read what git has checked already when it was configured."""
    if text.startswith("^"):
        return Refspec(text[1:], None, negative=True)
    source, colon, target = text.removeprefix("+").partition(":")
    return Refspec(source, target if colon and target else None)


def _mapped(name: str, pattern: str, target: str) -> str | None:
    before, star, after = pattern.partition("*")
    if not star:
        return target if name == pattern else None
    if not name.startswith(before) or not name.endswith(after):
        return None
    if len(name) <= len(before) + len(after):
        return None
    return target.replace("*", name[len(before) : len(name) - len(after)], 1)


@dataclass(frozen=True, slots=True)
class TrackedRemote:
    """The remote of a gitdir. `url` is as git's configuration has it; `tags` is False where
    only tags that a refspec names are wanted (``--no-tags``, or a depth)."""

    name: str
    url: str = field(repr=False)
    refspecs: tuple[Refspec, ...]
    tags: bool = True

    def local_names(self, name: str) -> list[str]:
        """Where the remote's ref `name` goes: to a remote-tracking branch, a tag, or nowhere."""
        if any(spec.negative and spec.covers(name) for spec in self.refspecs):
            return []
        found = [spec.local(name) for spec in self.refspecs]
        names = [local for local in found if local is not None and _ours(local)]
        if name.startswith(_TAGS) and (self.tags or name in found):
            names.append(name)
        return names

    def tracking(self, branch: str) -> str | None:
        """The remote-tracking name of a full branch name; None for one that is not tracked."""
        return next(iter(self.local_names(branch)), None)

    def owns(self, name: str) -> bool:
        """Whether the local ref `name` follows this remote, and goes when it is gone there."""
        return _ours(name) and any(spec.owns(name) for spec in self.refspecs)

    def prefixes(self) -> tuple[str, ...]:
        """What to ask the remote for."""
        sources = [spec.source.partition("*")[0] for spec in self.refspecs if spec.target]
        return tuple(dict.fromkeys([*sources, *([_TAGS] if self.tags else [])]))


def _ours(name: str) -> bool:
    """A fetch of ours leaves local branches alone, whatever the refspec says."""
    return name.startswith("refs/") and not name.startswith((_HEADS, _TAGS))


def default_refspec(name: str) -> str:
    """What `git clone` configures for a remote."""
    return f"+refs/heads/*:refs/remotes/{name}/*"


def default_remote(url: str, name: str = DEFAULT_NAME) -> TrackedRemote:
    """A remote as `git clone` makes it."""
    return TrackedRemote(name, url, (parse_refspec(default_refspec(name)),))


async def tracked_remote(gitdir: Path, url: str, *, whole: bool = True) -> TrackedRemote:
    """The remote of `gitdir` that was cloned from `url`, whatever it is called by now.

    A remote without refspecs gets the usual one where the clone is `whole` (not one of a depth).
    Takes a git process. Where the gitdir has no remote at all, it is an origin of that URL.
    """
    pattern = r"^(remote\..*\..*|extensions\.partialclone)$"
    try:
        output = await run_git(
            "config", "-z", "--get-regexp", pattern, gitdir=gitdir, deadline_s=_DEADLINE_S
        )
    except GitFailed:
        return default_remote(url)
    promisor, remotes = _sections(output.decode("utf-8", "surrogateescape"))
    name = _pick(remotes, promisor, url)
    if name is None:
        return default_remote(url)
    values = remotes[name]
    specs = [parse_refspec(text) for text in values.get("fetch", ())]
    if not specs and whole:
        specs = [parse_refspec(default_refspec(name))]
    return TrackedRemote(
        name,
        values["url"][0],
        tuple(specs),
        tags=whole and values.get("tagopt", [""])[-1] != "--no-tags",
    )


async def remotes_of(gitdir: Path) -> list[TrackedRemote]:
    """Every remote that `gitdir` is configured to fetch from. Takes a git process."""
    pattern = r"^remote\..*\.(fetch|url)$"
    try:
        output = await run_git(
            "config", "-z", "--get-regexp", pattern, gitdir=gitdir, deadline_s=_DEADLINE_S
        )
    except GitFailed:
        return []
    _, remotes = _sections(output.decode("utf-8", "surrogateescape"))
    return [
        TrackedRemote(
            name,
            next(iter(values.get("url", ())), ""),
            tuple(parse_refspec(text) for text in values.get("fetch", ())),
        )
        for name, values in remotes.items()
    ]


_Sections = Mapping[str, Mapping[str, list[str]]]


def _sections(text: str) -> tuple[str | None, _Sections]:
    """``extensions.partialClone``, and the values of each remote by key in lower case."""
    promisor = None
    remotes: dict[str, dict[str, list[str]]] = {}
    for entry in filter(None, text.split("\0")):
        key, _, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        if section == "extensions":
            promisor = value
            continue
        name, _, variable = rest.rpartition(".")
        remotes.setdefault(name, {}).setdefault(variable, []).append(value)
    return promisor, remotes


def _is_promisor(values: Mapping[str, list[str]]) -> bool:
    return values.get("promisor", ["false"])[-1].lower() in _TRUE


def _pick(remotes: _Sections, promisor: str | None, url: str) -> str | None:
    """The name of the remote that was cloned."""
    named = [name for name, values in remotes.items() if values.get("url")]
    promisors = [name for name in named if _is_promisor(remotes[name])]

    def of_url(names: Iterable[str]) -> list[str]:
        return [name for name in names if remotes[name]["url"][0] == url]

    for names in (
        of_url(promisors),
        [name for name in promisors if name == promisor],
        promisors,
        of_url(named),
        [name for name in named if name == promisor],
        [name for name in named if name == DEFAULT_NAME],
        named,
    ):
        if names:
            return names[0]
    return None
