"""The unit under a systemd of its own, in namespaces: what it leaves, keeps and ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import PROGRAMS, wait_until
from tests.e2e.test_outlive import KINDS

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = Path("/lib/systemd/systemd")
CGROUPS = Path("/sys/fs/cgroup")

BOOT = """
set -e
echo $$ > "$1/cgroup.procs"
exec unshare --fork --kill-child --pid --mount --cgroup --uts --ipc --net --mount-proc \
    --propagation private sh -ec '
umount -R /sys/fs/cgroup || true
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system /run/kept /run/none
mount --bind "$3" /run/kept
for folder in /tmp /var/log /var/lib/systemd; do mount -t tmpfs tmpfs "$folder"; done
mkdir -p "$3"
mount --move /run/kept "$3"
for folder in /proc/sys /sys /etc; do
    mount --bind "$folder" "$folder"
    mount -o remount,bind,ro "$folder"
done
if [ -e "$1/cgroup.controllers" ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
else
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
fi
printf "[Unit]\\nDefaultDependencies=no\\n" > /run/systemd/system/only.target
export container=other SYSTEMD_UNIT_PATH=/run/systemd/system SYSTEMD_GENERATOR_PATH=/run/none
exec "$2" --system --unit=only.target --log-target=null --show-status=0
' sh "$1" "$2" "$3"
"""
"""Group, systemd, folder of the test. It has no units but ours: those of the system would do to the
machine what they do at its start, such as to empty ``/tmp``."""

USES = """
import os, sys
fd, number = os.open("README.md", os.O_RDONLY), 0
print("ready", flush=True)
while not os.path.exists(sys.argv[1]):
    number += 1
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, 10, 0)
    with open("new", "w") as file:
        file.write("new")
    os.unlink("new")
    assert "README.md" in os.listdir(".")
    assert not os.path.exists(f"nobody-has-asked-for-{number}")
"""


class Machine:
    """A systemd, and commands beside it."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid = pid
        self.folder = folder
        self.environment = os.environ | {
            "ARTIFACT_FS_ROOT": str(folder / "state"),
            "ARTIFACT_FS_MOUNT_ROOT": str(folder / "mnt"),
            "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        }

    def command(self, *command: str | Path) -> list[str]:
        return ["nsenter", "--target", str(self.pid), "--all", *map(str, command)]

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(
            self.command(*command),
            env=self.environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def property(self, name: str) -> str:
        return self.run("systemctl", "show", "artifact-fs", "--value", "-p", name).strip()

    def install(self) -> None:
        unit = (ROOT / "systemd/artifact-fs.service").read_text()
        unit = unit.replace("/usr/local/bin/artifact-fs", str(PROGRAMS / "artifact-fs"))
        unit = unit.replace("StateDirectory=artifact-fs\n", "")
        unit = unit.replace("[Unit]\n", "[Unit]\nDefaultDependencies=no\n")
        for place, ours in (("/var/lib/artifact-fs", "state"), ("/mnt/artifact-fs", "mnt")):
            unit = unit.replace(f"={place}", f"={self.folder / ours}")
        installed = self.folder / "artifact-fs.service"
        installed.write_text(unit)
        self.run("cp", installed, "/run/systemd/system/")
        self.run("systemctl", "daemon-reload")

    def worker(self, name: str) -> str | None:
        """Which process serves the mount, as that systemd counts them."""
        shown = subprocess.run(
            self.command(PROGRAMS / "artifact-fs", "status", "--json", "--name", name),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout
        found = [line for line in shown.splitlines() if '"pid": ' in line]
        mounted = '"state": "mounted"' in shown
        return found[0].strip() if mounted and found else None


@pytest.fixture
def machine(open_folder: Path) -> Iterator[Machine]:
    tools = ("systemctl", "nsenter", "unshare")
    if os.geteuid() != 0 or not SYSTEMD.exists() or not all(map(shutil.which, tools)):
        pytest.skip("only root can start a systemd, where there is one")
    hierarchy = next(
        (CGROUPS / name for name in ("systemd", "") if (CGROUPS / name / "cgroup.procs").exists()),
        None,
    )
    if hierarchy is None:
        pytest.skip("systemd needs a hierarchy of control groups")
    group = hierarchy / f"artifactfs-test-{os.getpid()}"
    group.mkdir()
    boot = subprocess.Popen(
        ["sh", "-c", BOOT, "sh", group, SYSTEMD, open_folder],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = Path(f"/proc/{boot.pid}/task/{boot.pid}/children")
    try:
        first = wait_until(lambda: children.read_text().split(), "the first process")[0]
        found = Machine(int(first), open_folder)
        try:
            wait_until(lambda: is_up(found), "a systemd")
        except TimeoutError:
            pytest.skip("no systemd starts here")
        found.install()
        yield found
    finally:
        with contextlib.suppress(ProcessLookupError, UnboundLocalError):
            os.kill(int(first), signal.SIGKILL)  # with it everything ends, mounts too
        boot.kill()
        boot.wait()
        wait_until(lambda: remove(group), "the end of its processes")


def is_up(machine: Machine) -> bool:
    asked = machine.command("systemctl", "show", "only.target", "--value", "-p", "ActiveState")
    done = subprocess.run(asked, capture_output=True, text=True)
    return done.stdout.strip() == "active"


def remove(group: Path) -> bool:
    """Control groups are removed from below."""
    for folder, _folders, _files in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return not group.exists()


@pytest.mark.long
@pytest.mark.parametrize("writes", KINDS)
def test_a_mount_outlives_what_systemd_does_with_its_service(
    machine: Machine, odd_repository: OddRepository, writes: str
) -> None:
    """Started anew, its main process killed, all of its processes killed; then stopped."""
    source = machine.folder / "source.git"
    shutil.copytree(odd_repository.path, source)
    machine.run("systemctl", "start", "artifact-fs")
    options = ("--name", "odd", "--remote", source, "--writes", writes)
    machine.run("artifact-fs", "add-repo", *options)
    top, end = machine.folder / "mnt/odd", machine.folder / "end"
    uses = ("sh", "-c", 'cd "$1" && exec "$2" -c "$3" "$4"', "sh", top, sys.executable, USES, end)
    program = subprocess.Popen(
        machine.command(*uses),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert program.stdout is not None and program.stdout.readline() == b"ready\n"
    wait_until(lambda: machine.property("NFileDescriptorStore") == "2", "it is stored")
    kill = ("systemctl", "kill", "-s", "KILL", "artifact-fs")
    for what in (("systemctl", "restart", "artifact-fs"), (*kill, "--kill-whom=main"), kill):
        worker = machine.worker("odd")
        assert worker is not None
        machine.run(*what)
        wait_until(lambda: machine.worker("odd") not in (None, worker), f"after {what}")  # noqa: B023
        assert program.poll() is None, what
    end.touch()
    assert program.communicate(timeout=60)[1] == b"" and program.returncode == 0
    machine.run("systemctl", "stop", "artifact-fs")
    assert machine.property("ActiveState") == "inactive"
    assert str(top) not in machine.run("cat", "/proc/mounts")
    left = machine.run("ps", "-eo", "args")
    assert "artifact-fs daemon" not in left and "forkserver" not in left
