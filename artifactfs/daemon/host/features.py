"""Which features a mount would have on this machine, without making one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from artifactfs.daemon.host import overlayfs
from artifactfs.errors import MountError
from artifactfs.features import Features, version_of
from artifactfs.fs.kernel import extension
from artifactfs.fs.native import stamps
from artifactfs.system.processes import may_mount

_GIT_WAIT_S = 10.0


def find_features(state_root: Path) -> Features:
    """As far as it can be known before the kernel's FUSE_INIT, for a state root that may not be
    there yet. For any thread; root tries a mount in it.

    Raises: MountError where pyfuse3 or libfuse cannot be loaded, InvalidInput.
    """
    features = Features()
    try:
        import pyfuse3
    except ImportError as error:
        raise MountError(f"pyfuse3 cannot be loaded: {error}") from None
    extension.probe(features, pyfuse3)
    if not hasattr(pyfuse3, "_wait_fuse_readable"):
        features.lacks("fast-loop", "pyfuse3 is not the one it was made for")
    if os.geteuid() != 0:
        features.lacks("kernel-limits", "only root may set them", expected=True)
    if not may_mount():
        features.lacks("git-folder", "only root may mount the gitdir there", expected=True)
    if (why_not := _why_the_kernel_cannot_write(state_root)) is not None:
        features.lacks("kernel-writes", why_not, expected=True)
    stamps.probe(features)
    try:
        printed = subprocess.run(
            ["git", "--version"], capture_output=True, text=True, timeout=_GIT_WAIT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return features
    features.learn(git=version_of(printed))
    return features


def _why_the_kernel_cannot_write(state_root: Path) -> str | None:
    try:
        return overlayfs.why_not(state_root) if state_root.is_dir() or os.geteuid() != 0 else None
    except OSError as error:
        return f"{state_root}: {error.strerror}"
