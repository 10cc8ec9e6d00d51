"""Settings from the command line, the environment and the TOML file, under the same names."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from artifactfs.cli import main
from artifactfs.cli.terminal import configuration
from artifactfs.errors import InvalidInput

Seen = dict[str, object]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setenv("ARTIFACT_FS_CONFIG", str(path))
    monkeypatch.setenv("ARTIFACT_FS_ROOT", str(tmp_path / "state"))
    return path


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """``artifact-fs status`` replaced by a command that tells what it was given."""
    seen: Seen = {}

    @click.command("status")
    @click.option("--hydrate-budget", type=int, default=1)
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--hydrate-first", multiple=True)
    def status(**values: object) -> None:
        seen.update(values)
        seen["state_root"] = click.get_current_context().meta.get("artifactfs.state_root")

    original = main.LazyGroup.get_command

    def get_command(group: main.LazyGroup, ctx: click.Context, name: str) -> click.Command | None:
        return status if name == "status" else original(group, ctx, name)

    monkeypatch.setattr(main.LazyGroup, "get_command", get_command)
    return seen


def test_the_built_in_default(probe: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTIFACT_FS_CONFIG", "")
    assert main.run(["status"]) == 0
    assert probe["hydrate_budget"] == 1


@pytest.mark.parametrize("name", ["hydrate-budget", "hydrate_budget"])
def test_file_over_default(config: Path, probe: Seen, name: str) -> None:
    config.write_text(f"[status]\n{name} = 2\njson = true\nhydrate-first = ['*.c', '*.h']\n")
    assert main.run(["status"]) == 0
    assert probe["hydrate_budget"] == 2
    assert probe["as_json"] is True
    assert probe["hydrate_first"] == ("*.c", "*.h")


def test_environment_over_file(config: Path, probe: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[status]\nhydrate-budget = 2\n")
    monkeypatch.setenv("ARTIFACT_FS_STATUS_HYDRATE_BUDGET", "3")
    assert main.run(["status"]) == 0
    assert probe["hydrate_budget"] == 3


def test_flag_over_environment(config: Path, probe: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("[status]\nhydrate-budget = 2\n")
    monkeypatch.setenv("ARTIFACT_FS_STATUS_HYDRATE_BUDGET", "3")
    assert main.run(["status", "--hydrate-budget", "4"]) == 0
    assert probe["hydrate_budget"] == 4


def test_options_of_the_program_itself(config: Path, probe: Seen, tmp_path: Path) -> None:
    config.write_text(f"state-root = '{tmp_path / 'elsewhere'}'\n")
    assert main.run(["status"]) == 0
    assert probe["state_root"] == tmp_path / "elsewhere"


def test_other_commands_of_the_file_are_left_alone(config: Path, probe: Seen) -> None:
    config.write_text("[fetch]\nnot-looked-at = 1\n")
    assert main.run(["status"]) == 0


def test_a_typo_is_refused(config: Path, probe: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("[status]\nhydrate-buget = 2\n")
    assert main.run(["status"]) == 2
    said = capsys.readouterr().err
    assert f"error: {config}: status has no setting 'hydrate-buget'" in said
    assert "hint: did you mean 'hydrate-budget'?" in said


def test_a_wrong_value_is_refused(
    config: Path, probe: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text("[status]\nhydrate-budget = 'much'\n")
    assert main.run(["status"]) == 2
    assert "'much'" in capsys.readouterr().err


def test_a_broken_file_names_itself(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config.write_text("[status\n")
    assert main.run(["list-repos"]) == 2
    assert f"error: {config} is not TOML" in capsys.readouterr().err


def test_a_file_that_was_named_must_exist(config: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"):
        configuration.load_configuration()


def test_default_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ARTIFACT_FS_CONFIG", raising=False)
    assert configuration.configuration_file() == Path("/etc/artifact-fs/config.toml")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert configuration.configuration_file() == tmp_path / "artifact-fs" / "config.toml"
