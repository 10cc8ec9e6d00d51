"""The Vagrantfile, the container's files and the shell scripts, as far as they run without both."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SHELL_SCRIPTS = [
    ROOT / "vagrant" / "provision",
    ROOT / "vagrant" / "smoke",
    ROOT / "containers" / "entrypoint",
    ROOT / "scripts" / "install-service",
    ROOT / "scripts" / "test-on",
]

# Stands for Vagrant: takes every setting, and tells which scripts it was to run.
VAGRANT = """
class Anything < BasicObject
  def method_missing(name, *args, **options, &block)
    ::Kernel.puts([name, options[:path]].join(' ')) if name == :provision
    yield ::Anything.new if block
    ::Anything.new
  end
end
module Vagrant
  def self.configure(version)
    raise "version #{version}" unless version == '2'
    yield Anything.new
  end
end
load ARGV[0]
"""


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(script: Path) -> None:
    checked = subprocess.run(["shellcheck", script], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.skipif(shutil.which("ruby") is None, reason="ruby is not installed")
def test_the_vagrantfile_runs_the_scripts_that_exist() -> None:
    ran = subprocess.run(
        ["ruby", "-e", VAGRANT, ROOT / "Vagrantfile"], capture_output=True, text=True, check=True
    )
    scripts = [line.split()[-1] for line in ran.stdout.splitlines()]
    assert scripts == ["vagrant/provision", "vagrant/smoke"]
    assert all((ROOT / script).is_file() for script in scripts)


def test_the_image_copies_what_exists() -> None:
    text = (ROOT / "containers" / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]


def test_the_entrypoint_says_what_is_missing() -> None:
    done = subprocess.run(
        [ROOT / "containers" / "entrypoint", "true"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "ARTIFACTS_GIT_REMOTE is not set" in done.stderr
