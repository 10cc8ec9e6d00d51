"""The installed program, as an ordinary user runs it, and as a container's entrypoint does."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.mount_table import clear_mounts, mounted_at
from tests.e2e.odd_repository import OddRepository
from tests.e2e.processes import ServedRepository, end_daemon_of, wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
NOBODY = 65534
SYSTEM_PYTHON = "/usr/bin/python3"

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        subprocess.run(
            [SYSTEM_PYTHON, "-c", "import sys, ensurepip; sys.exit(sys.version_info < (3, 11))"],
            capture_output=True,
        ).returncode
        != 0,
        reason="needs a Python 3.11 that every user may run",
    ),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean environment with the wheel and the entrypoint, where every user can run them."""
    directory = Path("/tmp") / f"afs-installed-{os.getpid()}"
    directory.mkdir(mode=0o755)
    try:
        wheels = tmp_path_factory.mktemp("wheels")
        pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
        subprocess.run([SYSTEM_PYTHON, "-m", "venv", directory / "venv"], check=True)
        python = directory / "venv/bin/python"
        subprocess.run([python, *pip, "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
        subprocess.run([python, *pip, "install", *wheels.glob("*.whl")], check=True)
        shutil.copy(ROOT / "containers/entrypoint", directory / "venv/bin")
        subprocess.run(["chmod", "-R", "a+rX", directory], check=True)
        yield directory / "venv/bin"
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def place(programs: Path) -> Iterator[Path]:
    """A short, private folder, with nothing mounted below it afterwards."""
    directory = programs.parent.parent / "place"
    directory.mkdir()
    try:
        yield directory
    finally:
        clear_mounts(directory)
        shutil.rmtree(directory)


def environment(programs: Path, place: Path, **more: str) -> dict[str, str]:
    return {
        "PATH": f"{programs}:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": str(place / "home"),
        "ARTIFACT_FS_ROOT": str(place / "state"),
        "ARTIFACTS_MOUNT": str(place / "workspace"),
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        **more,
    }


@pytest.fixture
def entrypoint(
    programs: Path, place: Path, remote_repo: Callable[..., ServedRepository]
) -> Callable[..., subprocess.Popen[str]]:
    """Start the container's entrypoint with a command, as the container would."""
    remote = remote_repo()

    def start(*command: str, **more: str) -> subprocess.Popen[str]:
        given = {"ARTIFACTS_GIT_REMOTE": remote.remote, "ARTIFACTS_TOKEN": remote.token, **more}
        return subprocess.Popen(
            [programs / "entrypoint", *command],
            env=environment(programs, place, **given),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    return start


def test_entrypoint_runs_a_command_in_the_tree(
    entrypoint: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    command = "git rev-parse --show-toplevel; env; cat .git; exit 7"
    said, errors = (process := entrypoint("sh", "-c", command)).communicate(timeout=60)
    assert process.returncode == 7, errors
    assert said.startswith(f"{place / 'workspace'}\n")
    assert "art_v1_" not in said + errors
    assert not mounted_at(place / "workspace")
    assert (place / "state").stat().st_mode & 0o077 == 0


def test_entrypoint_after_a_container_that_was_killed(
    entrypoint: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    """In the middle of its start: the socket of its daemon is there, and half a repository."""
    unfinished = place / "state" / "repos" / "workspace"
    unfinished.mkdir(parents=True)
    (unfinished / "adding").write_text("7 12345\n")
    (place / "state").chmod(0o700)
    with socket.socket(socket.AF_UNIX) as leftover:
        leftover.bind(str(place / "state" / "control.sock"))
    process = entrypoint("git", "rev-parse", "--show-toplevel")
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, f"{place / 'workspace'}\n"), errors


def test_entrypoint_as_another_user(
    entrypoint: Callable[..., subprocess.Popen[str]], place: Path, open_device: None
) -> None:
    """fusermount3 mounts, git works, and a second run finds the first one's commit."""
    user = {"ARTIFACTS_USER": f"{NOBODY}:{NOBODY}"}
    work = (
        "id -u; echo mine > mine.txt && git add . && git commit -qm Mine && git status --porcelain"
    )
    said, errors = (process := entrypoint("sh", "-c", work, **user)).communicate(timeout=60)
    assert (process.returncode, said) == (0, f"{NOBODY}\n"), errors
    assert not mounted_at(place / "workspace")
    again = entrypoint("sh", "-c", "cat mine.txt; git log -1 --format=%s", **user)
    said, errors = again.communicate(timeout=60)
    assert said == "mine\nMine\n", errors
    assert (place / "state").stat().st_uid == NOBODY


def test_entrypoint_as_a_sidecar(
    entrypoint: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    process = entrypoint()
    wait_until(lambda: (place / "workspace/.git").exists(), "the sidecar's mount")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (0, 143)
    assert not mounted_at(place / "workspace")


def test_a_sidecar_mounts_for_a_container_without_rights(
    programs: Path,
    place: Path,
    remote_repo: Callable[..., ServedRepository],
    open_device: None,
) -> None:
    """Mount namespaces as compose.yaml makes them: rshared for the one, rslave for the other."""
    trees = place / "trees"
    trees.mkdir()
    subprocess.run(["mount", "--bind", trees, trees], check=True)
    subprocess.run(["mount", "--make-shared", trees], check=True)
    tree = trees / "workspace"
    remote = remote_repo()
    look = f"until [ -e {tree}/.git ]; do sleep 0.1; done; id -u; cd {tree}; git log -1 --format=%H"
    worker = subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "slave", "--"),
            *("setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"),
            *("--bounding-set=-all", "--no-new-privs", "--", "sh", "-c", look),
        ],
        env=environment(programs, place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    given = {
        "ARTIFACTS_GIT_REMOTE": remote.remote,
        "ARTIFACTS_TOKEN": remote.token,
        "ARTIFACTS_MOUNT": str(tree),
        "ARTIFACTS_USER": f"{NOBODY}:{NOBODY}",
    }
    sidecar = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "unchanged", "--", programs / "entrypoint"],
        env=environment(programs, place, **given),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    try:
        said, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
        uid, commit = said.split()
        assert uid == str(NOBODY) and len(commit) == 40
    finally:
        worker.kill()
        sidecar.terminate()
        sidecar.wait(60)
    assert not mounted_at(tree)


def test_a_signal_reaches_the_command(
    entrypoint: Callable[..., subprocess.Popen[str]], place: Path
) -> None:
    process = entrypoint("sh", "-c", "trap 'exit 9' TERM; touch ready; while :; do sleep 0.1; done")
    wait_until(lambda: (place / "workspace/ready").exists(), "the command")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 9
    assert not mounted_at(place / "workspace")


def test_one_line_as_an_ordinary_user(
    programs: Path, place: Path, odd_repository: OddRepository, open_device: None
) -> None:
    """Mount, work, doctor, unmount: no root, no daemon started before."""
    source = place / "source.git"
    subprocess.run(["git", "clone", "-q", "--bare", odd_repository.path, source], check=True)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", place], check=True)
    tree = place / "tree"

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", *command],
            env=environment(programs, place),
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    try:
        run("artifact-fs", "mount", source, tree)
        assert mounted_at(tree)
        assert run("git", "-C", tree, "status", "--porcelain") == ""
        run("sh", "-c", f"echo hello > {tree}/hello && git -C {tree} add hello")
        assert run("git", "-C", tree, "status", "--porcelain") == "A  hello\n"
        assert "0 problems" in run("artifact-fs", "doctor")
        run("artifact-fs", "redirect", "add", "node_modules", "--name", "tree")
        assert "symlink" in run("artifact-fs", "redirect", "list", "--name", "tree")
        run("sh", "-c", f"echo x > {tree}/node_modules/x")
        assert run("git", "-C", tree, "status", "--porcelain") == "A  hello\n"
        run("artifact-fs", "umount", tree)
        assert not mounted_at(tree)
    finally:
        end_daemon_of(place / "state")
