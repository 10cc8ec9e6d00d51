"""The machine: FUSE, the kernel, libfuse, git, limits."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import re
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from artifactfs.doctor.finding import Finding, Patient, note, ok, problem, warning
from artifactfs.features import dotted, version_of
from artifactfs.system.fuse_device import FUSE_DEVICE, let_in
from artifactfs.system.processes import may_mount, status_fields

FUSE_CONF = Path("/etc/fuse.conf")
FUSECTL = Path("/sys/fs/fuse/connections")
IDLE_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
HALT_POLLING = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")

OLDEST_GIT = (2, 30)
"""An older one lacks what is used, by its documentation: partial clone, protocol v2, the second
interface of the fsmonitor. That this one is enough is not promised: it was not run."""
TESTED_GIT = (2, 39)
"""Debian 12's. Between the oldest and the oldest tested one, nobody has looked."""
TESTED_LIBFUSE = (3, 14)
TESTED_KERNEL = (6, 18)
"""The oldest that was run. With an older libfuse or kernel a mount has fewer features, as
`artifactfs.features` finds by asking them; what else is different nobody has looked at."""
ENOUGH_DESCRIPTORS = 4096


def check_device(_: Patient) -> Iterator[Finding]:
    """Open ``/dev/fuse``, as a mount would; this alone has no effect."""
    try:
        descriptor = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        yield _device_finding(error)
        return
    os.close(descriptor)
    yield ok("fuse.device", f"{FUSE_DEVICE} can be opened")


def _device_finding(error: OSError) -> Finding:
    if error.errno == errno.ENOENT:
        return problem(
            "fuse.device-missing",
            f"{FUSE_DEVICE} does not exist",
            "modprobe fuse  (in a container: start it with --device /dev/fuse)",
        )
    if error.errno == errno.EACCES:
        return problem(
            "fuse.device-permission",
            f"{FUSE_DEVICE} cannot be opened by this user (mode {_mode(FUSE_DEVICE)})",
            let_in(),
        )
    if error.errno == errno.EPERM:
        return problem(
            "fuse.device-forbidden",
            f"the container's device rules forbid {FUSE_DEVICE}",
            "start the container with --device /dev/fuse",
        )
    return problem(
        "fuse.device-unusable",
        f"{FUSE_DEVICE} cannot be opened: {os.strerror(error.errno or 0)}",
        f"as root: rm -f {FUSE_DEVICE} && mknod -m 0660 {FUSE_DEVICE} c 10 229 && modprobe fuse",
    )


def _mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def check_kernel(_: Patient) -> Iterator[Finding]:
    """Version, the ``fuse`` file system, and the place where a stuck mount can be aborted."""
    release = os.uname().release
    found = version_of(release)
    if found < TESTED_KERNEL:
        yield ok("kernel.version", f"Linux {release} (tested with {dotted(TESTED_KERNEL)})")
    else:
        yield ok("kernel.version", f"Linux {release}")
    if not re.search(r"\bfuse$", Path("/proc/filesystems").read_text(), re.MULTILINE):
        yield problem("kernel.no-fuse", "the kernel has no FUSE file system", "modprobe fuse")
    elif os.geteuid() == 0 and not os.path.ismount(FUSECTL):
        yield note(
            "kernel.no-fusectl",
            f"{FUSECTL} is not mounted: a mount that hangs cannot be aborted, and the kernel's "
            "limit of 12 background reads a mount stays",
            f"mount -t fusectl fusectl {FUSECTL}",
        )


def check_privileges(_: Patient) -> Iterator[Finding]:
    """Root needs CAP_SYS_ADMIN for mount(2); everybody else a set-user-ID ``fusermount3``."""
    status = status_fields()
    if os.geteuid() == 0:
        if not may_mount():
            yield problem(
                "fuse.no-sys-admin",
                "root lacks CAP_SYS_ADMIN here, so mount(2) is refused",
                "start the container with --cap-add SYS_ADMIN",
            )
            return
        yield ok("fuse.privileges", "root may mount")
    elif status.get(b"NoNewPrivs", b"0").strip() != b"0":
        yield problem(
            "fuse.no-new-privileges",
            "this process may not gain privileges (no_new_privs), so fusermount3 cannot mount",
            "start it without NoNewPrivileges= (systemd) or no-new-privileges (containers)",
        )
    yield from _check_fusermount()


def _check_fusermount() -> Iterator[Finding]:
    finding = problem if os.geteuid() != 0 else warning
    program = shutil.which("fusermount3")
    if program is None:
        yield finding(
            "fuse.no-fusermount3", "fusermount3 is not in PATH", "sudo apt-get install fuse3"
        )
        return
    found = Path(program).stat()
    if not found.st_mode & stat.S_ISUID or found.st_uid != 0:
        yield finding(
            "fuse.fusermount3-not-setuid",
            f"{program} is not set-user-ID root, so ordinary users cannot mount",
            f"sudo chown root {program} && sudo chmod 4755 {program}",
        )
    else:
        yield ok("fuse.fusermount3", f"{program} is set-user-ID root")


def check_libraries(_: Patient) -> Iterator[Finding]:
    """The FUSE library and its binding. Their versions are read without starting a session."""
    binding = importlib.util.find_spec("pyfuse3")
    if binding is None or binding.origin is None:
        yield problem(
            "fuse.no-pyfuse3", "pyfuse3 is not installed", "python -m pip install pyfuse3"
        )
        return
    try:
        # The library that pyfuse3 is linked to, whatever its name: .so.3, and .so.4 since 3.17.
        version = ctypes.CDLL(binding.origin).fuse_pkgversion
    except (OSError, AttributeError):
        yield problem(
            "fuse.no-libfuse",
            "the libfuse3 that pyfuse3 was built with is not installed",
            "sudo apt-get install fuse3 libfuse3-dev"
            " && python -m pip install --force-reinstall --no-deps pyfuse3",
        )
        return
    version.restype = ctypes.c_char_p
    release = version().decode()
    if version_of(release) < TESTED_LIBFUSE:
        yield note(
            "fuse.untested-libfuse",
            f"libfuse {release} is older than {dotted(TESTED_LIBFUSE)}, the oldest that is tested",
        )
    yield ok("fuse.libraries", f"libfuse {release}, pyfuse3 {metadata.version('pyfuse3')}")


def check_fuse_conf(patient: Patient) -> Iterator[Finding]:
    """``allow_other`` of a user who is not root needs ``user_allow_other``."""
    if os.geteuid() == 0:
        return
    wanting = [repo.name for repo in patient.repos if repo.allow_other]
    try:
        text = FUSE_CONF.read_text()
    except OSError:
        text = ""
    allowed = re.search(r"^\s*user_allow_other\s*$", text, re.MULTILINE) is not None
    if allowed:
        yield ok("fuse.allow-other", f"{FUSE_CONF} has user_allow_other")
    elif wanting:
        yield problem(
            "fuse.no-user-allow-other",
            f"{', '.join(wanting)}: --allow-other needs user_allow_other in {FUSE_CONF}",
            f"echo user_allow_other | sudo tee -a {FUSE_CONF}",
        )


def check_git(_: Patient) -> Iterator[Finding]:
    """git does the history, pushes and everything else that is git's."""
    program = shutil.which("git")
    if program is None:
        yield problem("git.missing", "git is not in PATH", "sudo apt-get install git")
        return
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        yield problem(
            "git.broken", f"{program} does not run: {error}", "sudo apt-get install --reinstall git"
        )
        return
    if version_of(answer) < OLDEST_GIT:
        yield problem(
            "git.old",
            f"{answer} lacks what this uses: {dotted(TESTED_GIT)} is the oldest that is tested",
            "sudo apt-get install --only-upgrade git",
        )
    elif version_of(answer) < TESTED_GIT:
        yield note(
            "git.untested",
            f"{answer} is older than {dotted(TESTED_GIT)}, the oldest that is tested",
            "sudo apt-get install --only-upgrade git",
        )
    else:
        yield ok("git.version", answer)


def check_limits(_: Patient) -> Iterator[Finding]:
    """Open files: each open file of the mount is a descriptor of its worker."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < ENOUGH_DESCRIPTORS:
        yield warning(
            "limits.descriptors",
            f"at most {hard} open files a process",
            f"ulimit -Hn {ENOUGH_DESCRIPTORS}  (systemd: LimitNOFILE={ENOUGH_DESCRIPTORS})",
        )
    else:
        yield ok("limits.descriptors", f"up to {hard} open files a process")


def check_halt_polling(_: Patient) -> Iterator[Finding]:
    """In a KVM guest: whether a CPU that waits a moment is given up at once. A program that asks
    the mount for something waits a moment each time (Documentation/virt/guest-halt-polling.rst)."""
    try:
        driver, polling = IDLE_DRIVER.read_text().strip(), int(HALT_POLLING.read_text())
    except (OSError, ValueError):
        return
    if driver == "haltpoll" and polling == 0:
        yield note(
            "cpu.halt-polling",
            "idle CPUs of this virtual machine halt at once: many small writes take twice as long",
            f"echo 200000 | sudo tee {HALT_POLLING}  (the kernel's default), or"
            " artifact-fs daemon --keep-cpus-awake",
        )
