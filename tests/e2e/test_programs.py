"""Programs that people run in a working tree, run on the mount."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.e2e.comparison import assert_same_tree
from tests.e2e.processes import DaemonProcess, wait_until

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

C_FILES = 40


def run(*command: str | Path, cwd: Path, timeout: float = 300) -> str:
    """Run a program that must succeed; return what it printed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}"
    return done.stdout


@pytest.mark.parametrize(
    "stressors",
    [
        ["--hdd", "2", "--hdd-bytes", "16m"],
        ["--iomix", "2", "--iomix-bytes", "16m"],
        ["--rename", "2", "--link", "1", "--symlink", "1", "--dentry", "1"],
        ["--dir", "2", "--dirdeep", "1", "--open", "1", "--fstat", "1"],
        ["--mmap", "1", "--mmap-file", "--mmap-bytes", "16m"],
        ["--flock", "2", "--fcntl", "1", "--lockofd", "1"],
        ["--seek", "2", "--readahead", "1", "--sync-file", "1", "--chmod", "1", "--utime", "1"],
        ["--filename", "1", "--access", "1", "--getdent", "1", "--mknod", "1", "--copy-file", "1"],
    ],
    ids=lambda stressors: "+".join(word[2:] for word in stressors if word.startswith("--")),
)
def test_stress_ng(mounted: Path, stressors: list[str]) -> None:
    where = mounted / "stress"
    where.mkdir()
    run(
        *("stress-ng", "--temp-path", where, "--timeout", "8", "--verify", "--metrics-brief"),
        *stressors,
        cwd=where,
    )
    assert "README.md" in os.listdir(mounted)


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_sqlite(mounted: Path, journal: str) -> None:
    path = mounted / "test.db"
    with sqlite3.connect(path) as database:
        assert database.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
        database.execute("create table t (id integer primary key, text text)")
    statement = "insert into t (text) values (hex(randomblob(200)))"
    script = (
        "import sqlite3, sys\n"
        "d = sqlite3.connect(sys.argv[1], timeout=60)\n"
        f"for n in range(150):\n    with d: d.execute({statement!r})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    with sqlite3.connect(path) as database:
        assert database.execute("select count(*) from t").fetchone()[0] == 300
        assert database.execute("pragma integrity_check").fetchone()[0] == "ok"


def test_pip_install(mounted: Path) -> None:
    target = mounted / "site"
    run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target),
        *("click", "rich", "httpx"),
        cwd=mounted,
    )
    code = "import click, rich.table, httpx; print(click.__file__)"
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(target) in printed.stdout


def test_npm_install(mounted: Path) -> None:
    work = mounted / "web"
    work.mkdir()
    (work / "package.json").write_text('{"name": "web", "version": "1.0.0"}')
    run("npm", "install", "--no-audit", "--no-fund", "express@4", cwd=work)
    program = "const e = require('express'); console.log(typeof e.Router)"
    assert run("node", "-e", program, cwd=work).strip() == "function"
    assert run("git", "status", "--short", cwd=mounted).strip() == "?? web/"


def test_build_of_a_c_project(mounted: Path) -> None:
    work = mounted / "project"
    work.mkdir()
    for number in range(C_FILES):
        (work / f"part{number}.c").write_text(f"int part{number}(void) {{ return {number}; }}\n")
    declarations = "".join(f"int part{number}(void);\n" for number in range(C_FILES))
    total = " + ".join(f"part{number}()" for number in range(C_FILES))
    (work / "main.c").write_text(
        f'#include <stdio.h>\n{declarations}int main(void) {{ printf("%d\\n", {total}); }}\n'
    )
    (work / "Makefile").write_text(
        "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\n"
        "program: $(OBJECTS)\n\tgcc -o $@ $^\n%.o: %.c\n\tgcc -O1 -c -o $@ $<\n"
    )
    run("make", "-j2", cwd=work)
    assert run("./program", cwd=work).strip() == str(sum(range(C_FILES)))
    assert "up to date" in run("make", "-j2", cwd=work)
    run("touch", "part7.c", cwd=work)
    assert "part7" in run("make", cwd=work)


def test_rsync_tar_and_cp_both_ways(mounted: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("rsync", "-a", "--exclude=/.git", f"{mounted}/", f"{out}/", cwd=tmp_path)
    assert_same_tree(mounted, out)
    run("rsync", "-a", f"{out}/src/", mounted / "back", cwd=tmp_path)
    assert_same_tree(mounted / "back", out / "src")
    again = run("rsync", "-ai", f"{out}/src/", mounted / "back", cwd=tmp_path)
    assert again == "", "a second rsync has nothing to do"
    run("tar", "cf", tmp_path / "a.tar", "-C", mounted, "src", "names", "deep", cwd=tmp_path)
    (mounted / "untar").mkdir()
    run("tar", "xf", tmp_path / "a.tar", "-C", mounted / "untar", cwd=tmp_path)
    run("tar", "df", tmp_path / "a.tar", "-C", mounted / "untar", cwd=tmp_path)
    run("cp", "-a", "src", "copied", cwd=mounted)
    assert_same_tree(mounted / "copied", out / "src")
    run("diff", "-r", "src", "copied", cwd=mounted)


def test_editors_replace_files(mounted: Path) -> None:
    run("sed", "-i", "s/Odd/Even/", "README.md", cwd=mounted)
    assert (mounted / "README.md").read_text().startswith("# Even")
    edit = ("vim", "-N", "-u", "NONE", "-es", "+%s/Even/Vim/", "+wq", "README.md")
    run(*edit, cwd=mounted)
    assert (mounted / "README.md").read_text().startswith("# Vim")
    assert run("git", "status", "--short", cwd=mounted).strip() == "M README.md"


def test_inotify_sees_changes(mounted: Path) -> None:
    watcher = subprocess.Popen(
        ["inotifywait", "-m", "-q", "-r", "--format", "%e %f", str(mounted / "case")],
        stdout=subprocess.PIPE,
        text=True,
    )
    seen: list[str] = []
    assert watcher.stdout is not None
    reader = threading.Thread(target=lambda: seen.extend(watcher.stdout or ()))
    reader.start()
    inotify = Path(f"/proc/{watcher.pid}/fdinfo")
    try:
        wait_until(
            lambda: any("inotify wd" in entry.read_text() for entry in inotify.iterdir()),
            "the watch",
        )
        (mounted / "case/new").write_text("new")
        (mounted / "case/file").write_text("changed")
        (mounted / "case/new").unlink()
        wait_until(lambda: any("DELETE new" in line for line in seen), "the events")
    finally:
        watcher.terminate()
        reader.join()
    assert any(line.startswith("CREATE new") for line in seen)
    assert any(line.startswith("MODIFY file") for line in seen)


def test_random_io_with_mmap_equals_a_plain_file(mounted: Path, tmp_path: Path) -> None:
    """What fsx does: writes, mapped writes, truncates and reads at random, against a model."""
    import mmap

    rng = random.Random(11)
    model = bytearray()
    path = mounted / "fsx"
    path.touch()
    with path.open("r+b", buffering=0) as file:
        for step in range(3_000):
            at, length = rng.randrange(256_000), rng.randrange(1, 20_000)
            kind = rng.choice(("write", "mapped", "truncate", "read", "read", "fsync"))
            if kind == "write":
                data = rng.randbytes(length)
                os.pwrite(file.fileno(), data, at)
                model.extend(bytes(max(0, at + length - len(model))))
                model[at : at + length] = data
            elif kind == "truncate" and step % 5 == 0:
                os.ftruncate(file.fileno(), at)
                model = model[:at] + bytes(max(0, at - len(model)))
            elif kind == "mapped" and len(model) > at + length:
                data = rng.randbytes(length)
                with mmap.mmap(file.fileno(), 0) as mapped:
                    mapped[at : at + length] = data
                model[at : at + length] = data
            elif kind == "fsync" and step % 20 == 0:
                os.fsync(file.fileno())
            elif kind == "read":
                assert os.pread(file.fileno(), length, at) == model[at : at + length], step
            if step % 100 == 0:
                assert os.fstat(file.fileno()).st_size == len(model)
    assert path.read_bytes() == model


def test_fsynced_data_is_in_a_copy_of_the_state(
    mounted: Path, daemon: DaemonProcess, tmp_path: Path
) -> None:
    """What a power cut would leave: the state root's files as they are after `fsync`."""
    for number in range(20):
        path = mounted / f"kept{number}"
        with path.open("wb") as file:
            file.write(b"%d" % number * 1000)
            file.flush()
            os.fsync(file.fileno())
    (mounted / "src").rename(mounted / "renamed")
    descriptor = os.open(mounted, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    copy = DaemonProcess(tmp_path.parent / "c")
    shutil.copytree(
        daemon.state,
        copy.state,
        symlinks=True,
        ignore=lambda _, names: [name for name in names if name.endswith(".sock")],
    )
    daemon.stop()
    try:
        copy.mounts.mkdir(parents=True)
        copy.start()
        mount = copy.mounts / "odd"
        if not mount.exists():
            mount = mounted
        wait_until(lambda: os.listdir(mount), "the mount of the copy")
        for number in range(20):
            assert (mount / f"kept{number}").read_bytes() == b"%d" % number * 1000
        assert (mount / "renamed/hello.c").is_file()
        assert not (mount / "src").exists()
    finally:
        copy.clean_up()
