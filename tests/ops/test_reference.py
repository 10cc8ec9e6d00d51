"""The generated reference, man pages and completions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
GENERATE = ROOT / "scripts" / "generate-docs"
PROGRAM = Path(sys.executable).parent / "artifact-fs"


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [str(part) for part in command], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("script", ["generate-docs", "generate-client"])
def test_what_is_generated_is_current(script: str) -> None:
    checked = run(ROOT / "scripts" / script, "--check")
    assert checked.returncode == 0, checked.stderr


def test_every_command_has_examples_and_help() -> None:
    text = (ROOT / "docs" / "cli.md").read_text()
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(sections) > 10
    ours = [section for section in sections if section.startswith("artifact-fs")]
    assert not [part.splitlines()[0] for part in ours if "Examples:" not in part]


def test_man_pages(tmp_path: Path) -> None:
    made = run(GENERATE, "--man", tmp_path)
    assert made.returncode == 0, made.stderr
    names = {path.name for path in tmp_path.iterdir()}
    assert {"artifact-fs.1", "artifact-fs-add-repo.1", "artifact-fs-redirect-add.1"} <= names
    page = (tmp_path / "artifact-fs-doctor.1").read_text()
    assert ".SH OPTIONS" in page and "\\-\\-deep" in page


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
def test_man_pages_are_well_formed(tmp_path: Path) -> None:
    run(GENERATE, "--man", tmp_path)
    said = run("mandoc", "-T", "lint", "-W", "warning", *sorted(tmp_path.iterdir())).stdout
    # No date: a page is the same whenever it is built.
    assert [line for line in said.splitlines() if "missing date" not in line] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_parse(shell: str, tmp_path: Path) -> None:
    script = tmp_path / f"artifact-fs.{shell}"
    script.write_text(run(PROGRAM, "completion", shell, check=True).stdout)
    assert "artifact-fs" in script.read_text()
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert run(shell, "-n", script).returncode == 0


def test_bash_completes(tmp_path: Path) -> None:
    script = tmp_path / "artifact-fs.bash"
    script.write_text(run(PROGRAM, "completion", "bash", check=True).stdout)
    asked = (
        f"PATH={PROGRAM.parent}:$PATH; . {script}; COMP_WORDS=(artifact-fs redi); COMP_CWORD=1; "
        '_artifact_fs_completion artifact-fs; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    assert run("bash", "-c", asked).stdout.split() == ["redirect"]
