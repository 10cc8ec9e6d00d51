"""What makes mounts fast here, and what is missing for more of it."""

from __future__ import annotations

from collections.abc import Iterator

from artifactfs.daemon.host.features import find_features
from artifactfs.doctor.finding import Finding, Patient, note, ok, problem, warning
from artifactfs.errors import InvalidInput, MountError
from artifactfs.features import VARIABLE, Features, State

_MEND = (
    "sudo apt-get install gcc libfuse3-dev python3-dev pkg-config, then install ArtifactFS again:"
    " pip install --force-reinstall --no-deps --no-cache-dir …"
)


def known_features(patient: Patient) -> Features | None:
    """None where it cannot be known; a finding says why."""
    try:
        return find_features(patient.state.root)
    except (InvalidInput, MountError):
        return None


def check_features(patient: Patient) -> Iterator[Finding]:
    """One finding for each cause: what only misses another feature is named with that."""
    try:
        states = find_features(patient.state.root).states()
    except InvalidInput as error:
        yield problem("features.unknown", error.message, f"correct {VARIABLE}: {error.hint}")
        return
    except MountError:
        return  # `check_libraries` says so
    off = [state for state in states.values() if not state.on]
    causes = [state for state in off if not _missing_need(state, off)]
    for cause in causes:
        others = [s.feature.name for s in off if s is not cause and _missing_need(s, [cause])]
        yield _finding(cause, others)
    on = [name for name, state in states.items() if state.on]
    yield ok("features.on", f"mounts have {', '.join(on)}")


def _missing_need(state: State, off: list[State]) -> bool:
    return any(other.feature.name in state.feature.needs for other in off)


def _finding(cause: State, others: list[str]) -> Finding:
    name = cause.feature.name
    what = f"{name} is off: {cause.why}"
    if others:
        what += f"; so {', '.join(others)} are off as well"
    if cause.expected or name != "extension":
        return note(f"features.{name}", f"{what} ({cause.feature.gives})")
    return warning(f"features.{name}", what, _MEND)
