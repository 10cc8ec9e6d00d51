"""Clean files that git converts on checkout: bytes, sizes and status of a plain clone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fs.converting import Pair, pair_of
from tests.fs.expectations import wait_for
from tests.fs.mounting import Mount, git

ROT13 = "tr 'A-Za-z' 'N-ZA-Mn-za-m'"

PROCESS_FILTER = """
import sys

def read():
    length = int(sys.stdin.buffer.read(4) or b"0", 16)
    return sys.stdin.buffer.read(length - 4) if length else None

def write(*packets):
    for packet in packets:
        head = b"0000" if packet is None else b"%04x" % (len(packet) + 4)
        sys.stdout.buffer.write(head + (packet or b""))
    sys.stdout.buffer.flush()

def read_list():
    return list(iter(read, None))

started = open(sys.argv[1], "a")
started.write("started\\n")
started.flush()
read_list()
write(b"git-filter-server\\n", b"version=2\\n", None)
read_list()
write(b"capability=clean\\n", b"capability=smudge\\n", None)
while True:
    request = dict(line.rstrip(b"\\n").split(b"=", 1) for line in read_list())
    if not request:
        break
    content = b"".join(read_list())
    name = request[b"pathname"]
    if name.endswith(b"bad.proc"):
        write(b"status=error\\n", None)
        continue
    mark = b"[" + name + b"]"
    smudge = request[b"command"] == b"smudge"
    content = mark + content if smudge else content.removeprefix(mark)
    write(b"status=success\\n", None)
    write(*[content[at:at + 1000] for at in range(0, len(content), 1000)], None, None)
"""

FILES: dict[str, bytes] = {
    ".gitattributes": b"""\
[attr]dos text eol=crlf
*.bat dos
*.id ident
*.rc working-tree-encoding=UTF-16 eol=crlf
*.rot filter=rot13
*.proc filter=proc
*.psd filter=lfs diff=lfs merge=lfs -text
*.none filter=nobody
/only/here.txt eol=crlf
*.raw binary
""",
    "a.bat": b"@echo off\necho hello\n",
    "sub/b.bat": b"one\ntwo\n",
    "sub/.gitattributes": b"unix.bat eol=lf\n*.raw dos\nnot/*.bat -dos -text\n*.mac [attr]x\n",
    "sub/unix.bat": b"one\ntwo\n",
    "sub/not/c.bat": b"one\ntwo\n",
    "sub/d.raw": b"zero \0\none\n",
    "e.raw": b"one\ntwo\n",
    "plain/.gitattributes": b"*.bat !dos !eol !text\n",
    "plain/f.bat": b"one\ntwo\n",
    "version.id": b"/* $Id$ */\n",
    "strings.rc": "Grüße ☃\nzwei\n".encode(),
    "secret.rot": b"Hello World\n",
    "some/deep/er/secret.rot": b"Uryyb\n" * 40_000,
    "x y'z.proc": b"content\n" * 5_000,
    "z.proc": b"",
    "image.psd": (
        b"version https://git-lfs.github.com/spec/v1\n"
        b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
    ),
    "x.none": b"untouched\n",
    "only/here.txt": b"here\n",
    "only/there.txt": b"there\n",
    "README": b"hello\n",
    "crlf.txt": b"one\r\ntwo\r\n",
    "empty.bat": b"",
    "large.bat": b"a line of this file\n" * 600_000,
}


Maker = Callable[..., Pair]


@pytest.fixture
def make_pair(
    tmp_path: Path, new_mount: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch
) -> Maker:
    """Call it with files, and what `pair_of` takes beside."""

    def make(files: dict[str, bytes], config: str = "", late: str = "", **start: object) -> Pair:
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "global.config"))
        return pair_of(files, tmp_path, new_mount, config=config, late=late, **start)

    return make


@pytest.fixture
def filters(tmp_path: Path) -> str:
    """A configuration with one filter of each kind."""
    script = tmp_path / "filter.py"
    script.write_text(PROCESS_FILTER)
    command = f"{sys.executable} {script} {tmp_path}/started"
    return (
        f'[filter "rot13"]\n\tsmudge = "{ROT13}"\n\tclean = "{ROT13}"\n\trequired\n'
        f'[filter "proc"]\n\tprocess = {command}\n'
    )


def test_bytes_and_sizes_are_those_of_a_clone(make_pair: Maker, filters: str) -> None:
    pair = make_pair(FILES, filters)
    assert (pair.clone / "a.bat").read_bytes() == b"@echo off\r\necho hello\r\n"
    assert (pair.clone / "secret.rot").read_bytes() == b"Uryyb Jbeyq\n"
    assert (pair.clone / "x y'z.proc").read_bytes().startswith(b"[x y'z.proc]content")
    pair.compare()
    pair.compare()
    git("read-tree", "HEAD", cwd=pair.top)
    assert pair.git("status", "--porcelain") == ""


def test_sizes_that_are_not_known_yet(make_pair: Maker, filters: str) -> None:
    pair = make_pair(FILES, filters, sizes_known=False)
    pair.compare()


@pytest.mark.parametrize("setting", ["autocrlf = true", "autocrlf = input", "eol = crlf"])
def test_settings_of_the_user(make_pair: Maker, setting: str) -> None:
    files = {**FILES, "auto/.gitattributes": b"* text=auto\n*.png binary\n"}
    files |= {"auto/a": b"one\ntwo\n", "auto/b": b"\0\n", "auto/c.png": b"one\n"}
    pair = make_pair(files, f"[core]\n\t{setting}\n")
    pair.compare()
    git("read-tree", "HEAD", cwd=pair.top)
    assert pair.git("status", "--porcelain") == ""


def test_what_was_committed_with_both_line_ends(make_pair: Maker) -> None:
    files = {".gitattributes": b"*.bat eol=crlf\n*.c text=auto eol=crlf\n"}
    files |= {name: b"one\r\ntwo\nthree\r\r\n" for name in ("a.bat", "a.c", "a.txt")}
    pair = make_pair(files)
    pair.compare()


def test_attribute_files_outside_of_the_tree(make_pair: Maker, tmp_path: Path) -> None:
    (tmp_path / "attributes").write_text("*.txt eol=crlf\n*.bat -text\n")
    files = {"a.txt": b"one\n", "b.bat": b"one\n", "deep/er/c.txt": b"one\n"}
    pair = make_pair(files, f"[core]\n\tattributesFile = {tmp_path}/attributes\n")
    assert (pair.top / "deep/er/c.txt").read_bytes() == b"one\r\n"
    pair.compare()


def test_plain_repositories_ask_for_nothing_but_the_attributes(make_pair: Maker) -> None:
    files = {".gitattributes": b"* text=auto\n*.png binary\n*.sh eol=lf\n", "a": b"a\n"}
    files |= {"sub/b.png": b"b\n", "sub/c.sh": b"c\n", "other/.gitattributes": b"*.c diff=cpp\n"}
    pair = make_pair(files)
    subprocess.run(["ls", "-lR", pair.top], check=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(list((pair.mount.layout / "attributes").glob("[!.]*"))) == 2)
    asked = [line.split()[1] for line in pair.mount.log()]
    assert sorted(asked) == [".gitattributes", "other/.gitattributes"]
    pair.mount.restart(kill=True)
    subprocess.run(["ls", "-lR", pair.top], check=True, stdout=subprocess.DEVNULL)
    assert len(pair.mount.log()) == len(asked)


def test_settings_and_results_outlive_restarts(
    make_pair: Maker, filters: str, tmp_path: Path
) -> None:
    pair = make_pair(FILES, filters)
    before = (pair.top / "secret.rot").read_bytes()
    (tmp_path / "global.config").write_text(
        '[core]\n\tautocrlf = true\n[filter "rot13"]\n\tsmudge = cat\n\tclean = cat\n'
        '[filter "lfs"]\n\tsmudge = sed s/size/SIZE/\n'
    )
    for kill in (False, True):
        pair.mount.restart(kill=kill)
        assert (pair.top / "secret.rot").read_bytes() == before
        assert (pair.top / "README").read_bytes() == b"hello\n"
        assert (pair.top / "image.psd").read_bytes() == FILES["image.psd"]
        assert (pair.top / "a.bat").read_bytes().endswith(b"hello\r\n")


def test_editing(make_pair: Maker, filters: str) -> None:
    pair = make_pair(FILES, filters)
    git("read-tree", "HEAD", cwd=pair.top)
    assert pair.git("update-index", "--refresh") == ""
    for top in (pair.top, pair.clone):
        with open(top / "a.bat", "ab") as file:
            file.write(b"echo more\r\n")
        with open(top / "secret.rot", "r+b") as file:
            file.write(b"HELLO")
        os.truncate(top / "strings.rc", 10)
        (top / "version.id").write_bytes((top / "version.id").read_bytes() + b"more\n")
    pair.compare()
    diff = pair.git("diff")
    assert "+echo more" in diff and "+URYYB World" in diff
    pair.git("add", "-A")
    dates = {"GIT_AUTHOR_DATE": "1600000000 +0000", "GIT_COMMITTER_DATE": "1600000000 +0000"}
    for top in (pair.top, pair.clone):
        git("commit", "-qm", "edited", cwd=top, **dates)
    pair.git("rev-parse", "HEAD")
    assert pair.git("status", "--porcelain") == ""


def test_moves_change_no_bytes(make_pair: Maker, filters: str) -> None:
    pair = make_pair(FILES, filters)
    for top in (pair.top, pair.clone):
        (top / "a.bat").rename(top / "a.txt")
        (top / "README").rename(top / "README.bat")
        (top / "sub/not").rename(top / "not")
        (top / "only").rename(top / "other")
        (top / "plain").rename(top / "sub/plain")
        os.link(top / "version.id", top / "version.txt")
        (top / "version.id").unlink()
        os.link(top / "e.raw", top / "e.bat")
        (top / "e.raw").unlink()
        (top / "made").mkdir()
        (top / "sub/b.bat").rename(top / "made/b.raw")
    pair.compare()
    pair.mount.restart()
    pair.compare()


def test_a_move_within_the_same_rules_brings_nothing(make_pair: Maker) -> None:
    pair = make_pair(
        {".gitattributes": b"*.bat eol=crlf\n", "d/a.bat": b"one\n", "d/b.txt": b"b\n"}
    )
    pair.mount.ask("stats")
    (pair.top / "d").rename(pair.top / "e")
    (pair.top / "e/b.txt").rename(pair.top / "b.text")
    assert pair.mount.ask("stats")["dirty_files"] == 0
    assert [line for line in pair.mount.log() if "gitattributes" not in line] == []
    assert (pair.top / "e/a.bat").read_bytes() == b"one\r\n"


def test_an_open_file_whose_name_goes(make_pair: Maker) -> None:
    files = {".gitattributes": b"*.bat eol=crlf\n", "a.bat": b"one\n", "b.bat": b"two\n"}
    pair = make_pair(files)
    with open(pair.top / "a.bat", "rb") as one, open(pair.top / "b.bat", "r+b") as two:
        (pair.top / "a.bat").unlink()
        (pair.top / "b.bat").unlink()
        assert os.fstat(one.fileno()).st_size == 5
        assert one.read() == b"one\r\n"
        two.seek(0, os.SEEK_END)
        two.write(b"three\n")
        two.seek(0)
        assert two.read() == b"two\r\nthree\n"


def test_compaction(make_pair: Maker) -> None:
    files = {".gitattributes": b"*.bat eol=crlf\n", "a.bat": b"one\n", "b.bat": b"two\n"}
    pair = make_pair(files)
    pack = next((pair.mount.layout / "git/objects/pack").glob("*.pack"))
    pack.with_suffix(".promisor").touch()
    (pair.top / "a.bat").write_bytes(b"one\n")  # the blob, but not what a clean file shows
    (pair.top / "b.bat").write_bytes(b"two\r\n")
    pair.mount.ask("bring", path="b.bat")
    assert pair.mount.ask("compact") == 1
    assert (pair.top / "a.bat").read_bytes() == b"one\n"
    assert (pair.top / "b.bat").read_bytes() == b"two\r\n"
    assert pair.mount.ask("stats")["dirty_files"] == 1


def test_filters_that_fail(make_pair: Maker, tmp_path: Path, filters: str) -> None:
    files = {
        ".gitattributes": b"*.must filter=must\n*.may filter=may\n*.proc filter=proc\n",
        "a.must": b"a\n",
        "b.may": b"b\n",
        "bad.proc": b"raw\n",
        "good.proc": b"raw\n",
    }
    broken = '[filter "must"]\n\tsmudge = "exit 3"\n\trequired = true\n'
    broken += '[filter "may"]\n\tsmudge = "echo partial; exit 3"\n'
    late = broken.replace("exit 3", f"test -e {tmp_path}/works && cat")
    pair = make_pair(files, late=filters + late)
    with pytest.raises(OSError, match="Input/output error"):
        (pair.top / "a.must").read_bytes()
    with pytest.raises(OSError, match="Input/output error"):
        (pair.top / "a.must").stat()
    assert (pair.top / "b.may").read_bytes() == b"b\n"
    assert (pair.top / "bad.proc").read_bytes() == b"raw\n"
    assert (pair.top / "good.proc").read_bytes() == b"[good.proc]raw\n"
    (tmp_path / "works").touch()
    assert (pair.top / "a.must").read_bytes() == b"a\n"
    assert (pair.top / "b.may").read_bytes() == b"b\n"


def test_a_process_serves_many_files(make_pair: Maker, filters: str, tmp_path: Path) -> None:
    files = {f"{number}.proc": b"x" * number for number in range(50)}
    pair = make_pair({".gitattributes": b"*.proc filter=proc\n", **files}, filters)
    started = (tmp_path / "started").read_text()
    subprocess.run(["ls", "-l", pair.top], check=True, stdout=subprocess.DEVNULL)
    pair.compare()
    assert (tmp_path / "started").read_text() == started + "started\n"
    pair.mount.stop()  # no process keeps the mount busy


def test_a_script_of_the_tree_as_filter(make_pair: Maker) -> None:
    files = {".gitattributes": b"*.up filter=up\n", "up.sh": b"tr a-z A-Z\n", "a.up": b"hello\n"}
    pair = make_pair(files, late='[filter "up"]\n\tsmudge = sh ./up.sh\n')
    assert (pair.top / "a.up").stat().st_size == 6
    assert (pair.top / "a.up").read_bytes() == b"HELLO\n"


def test_attributes_that_are_not_here(make_pair: Maker) -> None:
    files = {".gitattributes": b"*.bat eol=crlf\n", "a.bat": b"one\n", "b.txt": b"two\n"}
    pair = make_pair(files)
    pair.mount.stop()
    shutil.rmtree(pair.mount.layout / "attributes", ignore_errors=True)
    pair.mount.close_gate()
    pair.mount.start()
    assert sorted(os.listdir(pair.top)) == [".git", ".gitattributes", "a.bat", "b.txt"]
    asking = subprocess.Popen(["stat", "-c", "%s", pair.top / "b.txt"], stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        asking.wait(0.3)
    pair.mount.open_gate()
    assert asking.communicate(timeout=90)[0] == b"4\n"
    assert (pair.top / "a.bat").stat().st_size == 5


def test_a_filter_finds_what_it_names(make_pair: Maker) -> None:
    """It does not run in the mount, but what its command names is there, as it is now."""
    files = {
        ".gitattributes": b"*.must filter=named\n",
        ".lfsconfig": b"config\n",
        "a.must": b"a\n",
        "b.must": b"b\n",
        "tools/run": b"cat .lfsconfig tools/beside; cat\n",
        "tools/beside": b"beside\n",
    }
    named = '[filter "named"]\n\tsmudge = sh ./tools/run\n\trequired = true\n'
    pair = make_pair(files, late=named)
    assert (pair.top / "a.must").read_bytes() == b"config\nbeside\na\n"
    (pair.top / "tools/beside").write_bytes(b"changed\n")
    assert (pair.top / "b.must").read_bytes() == b"config\nchanged\nb\n"
    assert (pair.top / "a.must").read_bytes() == b"config\nbeside\na\n"
    assert (pair.mount.layout / "filtering").is_dir()
    pair.mount.stop()
    assert not (pair.mount.layout / "filtering").exists()
