"""What git's fsmonitor and untracked cache are told, asked by git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from artifactfs.fs.gitview.journal import EVERYTHING, ChangeJournal
from tests.fs.gitview.test_fsmonitor_random import plain_status
from tests.fs.mounting import Mount, git, renameat2


def answer(mount: Mount, token: str) -> tuple[str, list[str]]:
    content = (mount.path / ".artifact-fs/fsmonitor" / token).read_bytes()
    new, *paths = content.split(b"\0")
    return new.decode(), [os.fsdecode(path) for path in paths if path]


def changed(mount: Mount, action: Callable[[Path], object]) -> list[str]:
    """What one action is reported as, sorted."""
    token, _ = answer(mount, mount.ask("fsmonitor")["token"])
    action(mount.path)
    return sorted(answer(mount, token)[1])


def test_nothing_has_changed_at_first(mount: Mount) -> None:
    initial = mount.ask("fsmonitor")["initial"]
    (mount.path / "README").read_text()
    assert answer(mount, initial) == (initial, [])


def test_an_unknown_token_means_everything(mount: Mount) -> None:
    for token in ("unknown", "1234", "x.5", mount.ask("fsmonitor")["token"] + "99", "."):
        if token != ".":
            assert answer(mount, token)[1] == ["/"]


def test_an_answer_stays_as_it_was_given(mount: Mount) -> None:
    token, _ = answer(mount, mount.ask("fsmonitor")["token"])
    question = mount.path / ".artifact-fs/fsmonitor" / token
    with question.open("rb") as before:
        for number in range(100):  # more than are kept
            (mount.path / f"new{number}").touch()
            for _ in range(2):
                assert f"new{number}" in answer(mount, token)[1]
        with question.open("rb") as after:
            assert b"new" not in before.read()
            assert after.read().count(b"new") == 100
    mount.kernel_forgets()
    assert len(answer(mount, token)[1]) == 100


def test_each_kind_of_change(mount: Mount) -> None:
    below = ".artifact-fs-changed"
    (mount.path / "old").mkdir()
    (mount.path / "hard").touch()
    os.link(mount.path / "hard", mount.path / "src/hard")
    cases: list[tuple[Callable[[Path], object], list[str]]] = [
        (lambda top: (top / "README").write_text("x"), ["README"]),
        (lambda top: (top / "README").chmod(0o755), ["README"]),
        (lambda top: os.utime(top / "README"), ["README"]),
        (lambda top: os.truncate(top / "src/f1.c", 3), ["src/f1.c"]),
        (lambda top: (top / "new").touch(), ["new"]),
        (lambda top: (top / "new").unlink(), ["new"]),
        (lambda top: (top / "src/f2.c").unlink(), ["src/f2.c"]),
        (lambda top: os.rename(top / "src/f3.c", top / "moved"), ["moved", "src/f3.c"]),
        (lambda top: os.rename(top / "moved", top / "MOVED"), ["MOVED", "moved"]),
        (lambda top: (top / "s").symlink_to("x"), ["s"]),
        (lambda top: (top / "hard").write_text("both"), ["hard", "src/hard"]),
        (lambda top: (top / "d").mkdir(), ["d/", f"d/{below}"]),
        (lambda top: (top / "d").rmdir(), ["d/"]),
        (
            lambda top: os.rename(top / "src", top / "lib"),
            [
                *("lib", "lib/", "src", "src/"),
                *(f"{path}/{below}" for path in ("lib", "lib/deep", "lib/deep/er")),
            ],
        ),
        (
            lambda top: renameat2(top / "docs", top / "README", 2),
            ["README", "README/", f"README/{below}", "docs", "docs/"],
        ),
    ]
    for action, expected in cases:
        assert changed(mount, action) == sorted(expected)


def test_what_was_made_and_removed_again_is_reported_each_time(mount: Mount) -> None:
    def come_and_go(top: Path) -> None:
        (top / "temporary").touch()
        (top / "temporary").unlink()

    assert changed(mount, come_and_go) == ["temporary"]
    assert changed(mount, come_and_go) == ["temporary"]


def test_writes_to_an_open_file_are_reported_each_time(mount: Mount) -> None:
    with open(mount.path / "README", "ab", buffering=0) as file:
        for _ in range(3):
            assert changed(mount, lambda top: file.write(b"more")) == ["README"]


def test_tokens_survive_a_clean_restart_only(mount: Mount) -> None:
    token = mount.ask("fsmonitor")["token"]
    (mount.path / "README").write_text("x")
    mount.restart()
    (mount.path / "docs/a.txt").write_text("x")
    token, paths = answer(mount, token)
    assert sorted(paths) == ["README", "docs/a.txt"]
    mount.restart(kill=True)
    assert answer(mount, token)[1] == ["/"]


def test_the_directory_is_hidden_and_gives_way(
    origin: Path, new_mount: Callable[..., Mount], tmp_path: Path
) -> None:
    work = tmp_path / "named"
    git("clone", "-q", str(origin), str(work), cwd=tmp_path)
    (work / ".artifact-fs").write_text("tracked\n")
    git("add", "-A", cwd=work)
    git("commit", "-qm", "tracked", cwd=work)
    mount = new_mount(work).start()
    assert (mount.path / ".artifact-fs").read_text() == "tracked\n"
    assert ".artifact-fs-2/" in mount.ask("fsmonitor")["command"]
    assert (mount.path / ".artifact-fs-2/fsmonitor/x").read_bytes().endswith(b"\0/")
    assert not [name for name in os.listdir(mount.path) if "fs-2" in name]
    with pytest.raises(FileExistsError):
        (mount.path / ".artifact-fs-2").mkdir()


def status(mount: Mount) -> tuple[str, str]:
    """`git status` with fsmonitor and untracked cache, and without."""
    return git("status", "--porcelain", cwd=mount.path), plain_status(mount.path)


def test_git_sees_every_change_through_it(mount: Mount) -> None:
    """After each step git, which trusts its caches, says what git says that looks at everything."""
    mount.make_gitdir()
    top = mount.path
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: (top / "README").write_text("changed"),
        lambda: (top / "README").write_text("hello\n"),
        lambda: (top / "src/new").touch(),
        lambda: (top / "src/new").unlink(),
        lambda: os.makedirs(top / "u/v/w"),
        lambda: (top / "u/v/w/file").touch(),
        lambda: os.rename(top / "u/v", top / "u/z"),
        lambda: os.makedirs(top / "u/v/w"),
        lambda: (top / "u/v/w/other").touch(),
        lambda: renameat2(top / "u/v", top / "u/z", 2),
        lambda: os.rename(top / "docs", top / "src/docs"),
        lambda: os.rename(top / "src", top / "u/src"),
        lambda: os.rename(top / "u/src", top / "src"),
        lambda: shutil.rmtree(top / "u"),
        lambda: shutil.rmtree(top / "src"),
        lambda: (top / "run.sh").chmod(0o644),
        lambda: git("checkout", "-q", "-f", "HEAD", cwd=top),
        lambda: git("clean", "-qfdx", cwd=top),
        lambda: mount.restart(),
        lambda: (top / "docs/a.txt").write_text("b\n"),
        lambda: mount.restart(kill=True),
        lambda: git("stash", "-q", cwd=top),
        lambda: git("stash", "pop", "-q", cwd=top),
    ]
    for number, step in enumerate(steps):
        step()
        for _ in range(2):
            with_all, without = status(mount)
            assert with_all == without, f"step {number}"


def test_git_stats_nothing_in_an_unchanged_tree(mount: Mount) -> None:
    mount.make_gitdir()
    for _ in range(3):
        git("status", cwd=mount.path)
    trace = mount.directory / "trace"
    arguments = ["strace", "-f", "-e", "trace=lstat,newfstatat,statx", "-o", str(trace)]
    if shutil.which("strace") is None:
        pytest.skip("strace is not here")
    subprocess.run([*arguments, "git", "status"], cwd=mount.path, check=True, capture_output=True)
    assert "many/1" not in trace.read_text()


def test_the_command_answers_where_there_is_no_mount(mount: Mount, tmp_path: Path) -> None:
    command = mount.ask("fsmonitor")["command"]
    output = subprocess.check_output(
        ["sh", "-c", command + ' "$@"', command, "2", "t"], cwd=tmp_path
    )
    assert output.split(b"\0")[1] == b"/"  # the token depends on who asks


def test_a_diff_is_vouched_for_by_a_git_that_can_take_it(mount: Mount) -> None:
    shell = os.path.realpath(shutil.which("sh") or "")
    initial = mount.ask("fsmonitor")["initial"]
    for sound, expected in ((None, b"/"), ("/no/such", b"/"), ("/usr/bin/env", b"/"), (shell, b"")):
        command = mount.ask("fsmonitor", sound=sound)["command"]
        for caller in ("diff", "status"):
            # A program called so, which runs the command as git does.
            run = [shell, "-c", 'sh -c "$COMMAND" x 2 "$1"; true', caller, initial]
            environment = {**os.environ, "COMMAND": command}
            output = subprocess.check_output(run, cwd=mount.path, env=environment)
            told = output.split(b"\0")[1]
            assert told == (expected if caller == "diff" else b""), (sound, caller)


def test_journal_that_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifactfs.fs.gitview.journal.MAX_PATHS", 10)
    journal = ChangeJournal()
    token = journal.token()
    for number in range(11):
        journal.changed(b"%d" % number)
    assert journal.since(token) is None
    assert journal.answer(token, lambda path, limit: []).endswith(b"\0" + EVERYTHING)
    token = journal.token()
    journal.changed(b"later")
    assert journal.since(token) == [b"later"]


def test_journal_with_too_many_directories() -> None:
    journal = ChangeJournal()
    token = journal.token()
    journal.directory_changed(b"d")
    assert journal.answer(token, lambda path, limit: None).endswith(b"\0" + EVERYTHING)


def test_journal_is_kept_as_it_was() -> None:
    journal, other = ChangeJournal(), ChangeJournal()
    token = journal.token()
    for path in (b"a", b"odd \xff\n name: with, things", b"a"):
        journal.changed(path)
    other.load(journal.dump())
    assert other.since(token) == [b"a", b"odd \xff\n name: with, things"]
    assert other.token() == journal.token()
