"""Make a bare repository with the history of a large real project, always the same.

Several releases of Django are fetched as source distributions (the tree of a release holds about
6,500 files), each becomes a commit with a tag, and between two releases come hundreds of commits
of a small edit each, so that the history is long as well: python benchmarks/make_django_history.py
prints the path of the repository. It is kept in a cache directory and made only once.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.fast_import import EXECUTABLE, FILE, SYMLINK, FastImport, run_git

RELEASES = ("3.2", "4.0", "4.1", "4.2", "5.0", "5.1")
EDITS_PER_RELEASE = 640
"""Small commits after each release but the last: 3,200 in all."""

DEFAULT_CACHE = Path.home() / ".cache" / "artifactfs-bench"

Tree = dict[bytes, tuple[bytes, bytes]]
"""Path → (mode, content)."""


def download_release(version: str, directory: Path) -> Path:
    """Return the source distribution of Django `version`, from the cache or the package index."""
    found = [*directory.glob(f"?jango-{version}.tar.gz")]
    if not found:
        options = ("--quiet", "--no-deps", "--no-binary", "Django", "--dest", str(directory))
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, f"Django=={version}"],
            check=True,
            stdout=sys.stderr,
        )
        found = [*directory.glob(f"?jango-{version}.tar.gz")]
    return found[0]


def read_release(archive: Path) -> Tree:
    """Return what is in `archive`, without its top directory."""
    tree: Tree = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.partition("/")[2].encode()
            if member.issym():
                tree[path] = (SYMLINK, member.linkname.encode())
            elif member.isreg():
                source = tar.extractfile(member)
                assert source is not None
                mode = EXECUTABLE if member.mode & 0o100 else FILE
                tree[path] = (mode, source.read())
    return tree


def add_edits(stream: FastImport, tree: Tree, count: int, rng: random.Random) -> None:
    """Add `count` commits, each of which changes a line or two of one Python file."""
    paths = sorted(path for path in tree if path.endswith(b".py") and len(tree[path][1]) > 200)
    current: dict[bytes, bytes] = {}
    for number in range(count):
        path = rng.choice(paths)
        mode, original = tree[path]
        lines = current.get(path, original).split(b"\n")
        at = rng.randrange(len(lines))
        lines[at : at + rng.randrange(2)] = [b"# Edit %d of line %d" % (stream.commits, at)]
        current[path] = b"\n".join(lines)
        name = path.decode()
        stream.commit(
            f"Edit {name} ({number + 1} of {count})\n\nLine {at} of {name} changes.\n",
            {path: (mode, stream.blob(current[path]))},
        )


def make_history(target: Path, archives: list[tuple[str, Path]], edits: int) -> None:
    """Write the repository `target`: each archive a commit, `edits` small commits between."""
    rng = random.Random(20_200_913)
    marks: dict[bytes, bytes] = {}
    with FastImport(target) as stream:
        for index, (version, archive) in enumerate(archives):
            tree = read_release(archive)
            files = {}
            for path, (mode, content) in sorted(tree.items()):
                if content not in marks:
                    marks[content] = stream.blob(content)
                files[path] = (mode, marks[content])
            stream.commit(f"Django {version}\n", files, replace_all=True)
            stream.tag(version)
            if index + 1 < len(archives):
                add_edits(stream, tree, edits, rng)
    run_git("-C", target, "repack", "-adq", "--window=10")


def django_history(
    cache: Path = DEFAULT_CACHE,
    *,
    releases: tuple[str, ...] = RELEASES,
    edits: int = EDITS_PER_RELEASE,
) -> Path:
    """Return the bare repository, made if it is not in `cache` yet."""
    target = cache / f"django-{'-'.join(releases)}-{edits}.git"
    if not target.exists():
        downloads = cache / "sdists"
        downloads.mkdir(parents=True, exist_ok=True)
        archives = [(version, download_release(version, downloads)) for version in releases]
        unfinished = target.with_suffix(".making")
        shutil.rmtree(unfinished, ignore_errors=True)
        make_history(unfinished, archives, edits)
        unfinished.rename(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE)
    parser.add_argument("--edits", type=int, default=EDITS_PER_RELEASE, metavar="N")
    parser.add_argument("releases", nargs="*", default=RELEASES)
    options = parser.parse_args()
    print(django_history(options.cache, releases=tuple(options.releases), edits=options.edits))


if __name__ == "__main__":
    main()
