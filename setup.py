"""The two parts that are compiled; everything else is in ``pyproject.toml``.

They are optional: without a C compiler, the headers of libfuse 3 or those of Python, the
installation succeeds, and mounts work with more requests (``artifact-fs doctor`` names what is
missing).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

HERE = Path(__file__).resolve().parent
COMPLETIONS = {
    ".bash": "share/bash-completion/completions",
    ".fish": "share/fish/vendor_completions.d",
}


def libfuse_flags() -> list[str]:
    """Where the headers of libfuse are; the usual place where pkg-config does not know."""
    try:
        printed = subprocess.run(
            ["pkg-config", "--cflags", "fuse3"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ["-I/usr/include/fuse3", "-D_FILE_OFFSET_BITS=64"]
    return shlex.split(printed)


def manuals() -> list[tuple[str, list[str]]]:
    """Man pages and completions, made for a wheel (`scripts/install` makes its own): where they
    are installed below the prefix, and the files."""
    if "bdist_wheel" not in sys.argv:
        return []
    sys.path.insert(0, str(HERE))
    try:
        from artifactfs.cli.main import cli
        from artifactfs.cli.terminal.reference import write_completions, write_man_pages
        from artifactfs.server.cli import cli as server
    except ImportError as error:  # pip install --no-build-isolation
        print(f"no man pages and completions: {error}", file=sys.stderr)
        return []

    programs = {"artifact-fs": cli, "artifacts-server": server}
    made = HERE / "build" / "manuals"
    shutil.rmtree(made, ignore_errors=True)
    found: dict[str, list[str]] = {}
    for page in write_man_pages(programs, made / "man"):
        found.setdefault("share/man/man1", []).append(os.path.relpath(page, HERE))
    for script in write_completions(programs, made / "completions"):
        if script.suffix == ".zsh":  # which looks for a function of that name
            script = script.rename(script.with_name(f"_{script.stem}"))
        folder = COMPLETIONS.get(script.suffix, "share/zsh/site-functions")
        found.setdefault(folder, []).append(os.path.relpath(script, HERE))
    return list(found.items())


setup(
    data_files=manuals(),
    ext_modules=[
        Extension(
            "artifactfs.fs.kernel._interposer",
            ["artifactfs/fs/kernel/_interposer.c"],
            extra_compile_args=["-Wall", "-Wextra", *libfuse_flags()],
            libraries=["dl"],  # of its own in glibc before 2.34
            optional=True,
        ),
        Extension(
            "artifactfs.fs.native._stamps",
            ["artifactfs/fs/native/_stamps.c"],
            extra_compile_args=["-Wall", "-Wextra", "-pthread", "-D_FILE_OFFSET_BITS=64"],
            extra_link_args=["-pthread"],
            optional=True,
        ),
    ],
)
