"""Wheel and sdist install in a clean environment, with everything that belongs in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def tracked(*patterns: str) -> set[str]:
    listed = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "--", *patterns], check=True, capture_output=True, text=True
    )
    return set(listed.stdout.split())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist of what git tracks, and in `plain` the wheel that a
    machine without a compiler makes."""
    directory = tmp_path_factory.mktemp("dist")
    source = directory / "source"
    source.mkdir()
    for name in tracked():
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = (
        "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])('..'))"
    )
    for kind in ("build_wheel", "build_sdist"):
        subprocess.run(
            [sys.executable, "-c", build, kind], cwd=source, check=True, capture_output=True
        )
    (directory / "plain").mkdir()
    shutil.rmtree(source / "build")
    subprocess.run(
        [sys.executable, "-c", build.replace("'..'", "'../plain'"), "build_wheel"],
        cwd=source,
        check=True,
        capture_output=True,
        env={**os.environ, "CC": "/nowhere/gcc"},
    )
    return directory


def compiled(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(".so")]


def test_the_extensions_are_compiled_where_they_can_be(built: Path) -> None:
    names = [name for wheel in built.glob("*.whl") for name in compiled(wheel)]
    expected = ["artifactfs/fs/kernel/_interposer", "artifactfs/fs/native/_stamps"]
    assert sorted(name.partition(".")[0] for name in names) == expected
    (plain,) = (built / "plain").glob("*.whl")
    assert compiled(plain) == []


@pytest.mark.parametrize(("kind", "why"), [("*.whl", None), ("plain/*.whl", "it was not compiled")])
def test_what_an_installed_wheel_says_of_it(
    built: Path, tmp_path: Path, kind: str, why: str | None
) -> None:
    """By what `pip install` puts on the disk, in an interpreter that has our dependencies."""
    (wheel,) = built.glob(kind)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    looked = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import artifactfs.cli.main as m; "
        "assert m.__file__.startswith(sys.argv[1]), m.__file__; "
        "m.run(['--state-root', sys.argv[1] + '/state', 'doctor', '--offline', '--json'])"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", looked, tmp_path / "site"], capture_output=True, text=True
    )
    report = json.loads(done.stdout)
    state = report["features"]["extension"]
    assert state["on"] == (why is None)
    assert (why or "") in (state["why"] or "")
    codes = [finding["code"] for finding in report["findings"]]
    assert ("features.extension" in codes) == (why is not None)


def test_the_wheel_has_every_file_of_the_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("artifactfs/")}
        entries = archive.read(
            next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        ).decode()
    assert tracked("artifactfs") - packed == set()
    assert "artifact-fs = artifactfs.cli.main:main" in entries
    assert "artifacts-server = artifactfs.server.cli:main" in entries


def test_the_sdist_has_every_file_that_is_not_about_the_repository(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        packed = {re.sub(r"^[^/]+/", "", name) for name in archive.getnames()}
    assert {name for name in tracked() - packed if not name.startswith(".")} == set()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["*.whl", "*.tar.gz"])
def test_it_installs_in_a_clean_environment(built: Path, tmp_path: Path, kind: str) -> None:
    (package,) = built.glob(kind)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", f"{package}[server]"], check=True
    )
    for program in ("artifact-fs", "artifacts-server"):
        said = subprocess.run(
            [programs / program, "--version"], check=True, capture_output=True, text=True
        )
        assert re.search(r"\d+\.\d+\.\d+", said.stdout)
    helped = subprocess.run(
        [programs / "artifact-fs", "doctor", "--help"], check=True, capture_output=True, text=True
    )
    assert "Examples:" in helped.stdout


def test_the_server_says_which_extra_it_needs(tmp_path: Path) -> None:
    without = (
        "import sys; sys.modules['hypercorn'] = None; from artifactfs.server.cli import run; "
        "sys.exit(run(['serve', '--data', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", without, tmp_path / "data"], capture_output=True, text=True
    )
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: hypercorn")
    assert "artifactfs[server]" in hint
