"""The one part that is compiled; everything else is in ``pyproject.toml``.

It is optional: without a C compiler, the headers of libfuse 3 or those of Python, the installation
succeeds, and mounts work with more requests (``artifact-fs doctor`` names what is missing).
"""

from __future__ import annotations

import shlex
import subprocess

from setuptools import Extension, setup


def libfuse_flags() -> list[str]:
    """Where the headers of libfuse are; the usual place where pkg-config does not know."""
    try:
        printed = subprocess.run(
            ["pkg-config", "--cflags", "fuse3"], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return ["-I/usr/include/fuse3", "-D_FILE_OFFSET_BITS=64"]
    return shlex.split(printed)


setup(
    ext_modules=[
        Extension(
            "artifactfs.fs.kernel._interposer",
            ["artifactfs/fs/kernel/_interposer.c"],
            extra_compile_args=["-Wall", "-Wextra", *libfuse_flags()],
            libraries=["dl"],  # of its own in glibc before 2.34
            optional=True,
        )
    ]
)
