"""Commands in a workspace: their output as it comes, their deadline, and who may stop them.

Blocks. What runs in a thread for a task is stopped by its `Stopper`: the one that `stopped_by` has
set in the thread's context. A command is the leader of a process group, which ends as a whole.
"""

from __future__ import annotations

import codecs
import os
import selectors
import shlex
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from artifactfs.daemon.control.remote_argument import REMOTE_VARIABLE, without_tokens
from artifactfs.errors import ArtifactFSError, InvalidInput
from artifactfs.git.apart import LOCAL_VARIABLES
from artifactfs.workspaces.results import Run

KEPT_CHARACTERS = 4 << 20
"""Of each stream of a command: what came last."""
KILL_AFTER_S = 2.0
DRAIN_S = 0.2
"""A process that a command left in the background may hold its output open: nobody waits for it."""
_CHUNK = 1 << 16
TIMED_OUT = 124
"""As timeout(1)."""

Output = Callable[[str, str], None]
"""Is called with ``stdout`` or ``stderr``, and text that came."""
Command = str | Sequence[str]


class Stopped(ArtifactFSError):
    """Whoever waited for a command does not any more."""


class Stopper:
    """Lets one thread end what another one waits for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: list[Callable[[], None]] = []
        self.stopped = False

    def stop(self) -> None:
        """End it, now and whatever it waits for next."""
        with self._lock:
            self.stopped = True
            ends = tuple(self._ends)
        for end in ends:
            end()

    @contextmanager
    def may_end(self, end: Callable[[], None]) -> Iterator[None]:
        """`end` is called, by another thread, to cut the block short. Raises: Stopped."""
        with self._lock:
            if self.stopped:
                raise Stopped("stopped")
            self._ends.append(end)
        try:
            yield
        finally:
            with self._lock:
                self._ends.remove(end)
        if self.stopped:
            raise Stopped("stopped")


_stopper: ContextVar[Stopper | None] = ContextVar("stopper", default=None)


@contextmanager
def stopped_by(stopper: Stopper) -> Iterator[None]:
    """What this thread waits for in the block, `stopper` may end."""
    token = _stopper.set(stopper)
    try:
        yield
    finally:
        _stopper.reset(token)


@contextmanager
def stoppable(end: Callable[[], None]) -> Iterator[None]:
    """`end` cuts the block short where somebody may. Raises: Stopped."""
    stopper = _stopper.get()
    if stopper is None:
        yield
        return
    with stopper.may_end(end):
        yield


def command_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a command in a workspace: ours without our tokens, without the remote,
    which may have one in it, and without what would point git at another repository."""
    environment = without_tokens(os.environ)
    for name in (REMOTE_VARIABLE, *LOCAL_VARIABLES):
        environment.pop(name, None)
    return environment | dict(more or {})


def shown(command: Command) -> str:
    """As a user would type it."""
    return command if isinstance(command, str) else shlex.join(command)


def words_of(command: Command) -> list[str]:
    """Text is for the shell. Raises: InvalidInput."""
    words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    if not words or not command:
        raise InvalidInput("there is no command to run")
    return words


@dataclass(slots=True)
class _Stream:
    """One stream of a command: decoded as it comes, the end of it kept."""

    name: str
    output: Output | None
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    _kept: deque[str] = field(default_factory=deque)
    _length: int = 0

    def take(self, data: bytes) -> None:
        text = self._decoder.decode(data, final=not data)
        if not text:
            return
        self._kept.append(text)
        self._length += len(text)
        while self._length - len(self._kept[0]) > KEPT_CHARACTERS:
            self._length -= len(self._kept.popleft())
        if self.output is not None:
            self.output(self.name, text)

    def text(self) -> str:
        return "".join(self._kept)[-KEPT_CHARACTERS:]


def run(
    command: Command,
    *,
    cwd: str,
    environment: Mapping[str, str],
    timeout_s: float | None,
    output: Output | None = None,
    given: bytes | None = None,
) -> Run:
    """Run `command` to its end, or until `timeout_s` is over: then it is killed.

    `given` is its standard input; without, it has none. Raises: InvalidInput where it cannot be
    started, Stopped, and whatever `output` raises; the command is killed then.
    """
    began = time.monotonic()
    process = _start(words_of(command), environment, cwd=cwd, has_input=given is not None)
    streams = _Stream("stdout", output), _Stream("stderr", output)
    end = None if timeout_s is None else began + timeout_s
    with process:
        try:
            with stoppable(lambda: _signal(process, signal.SIGKILL)):
                timed_out = _attend(process, streams, given or b"", end)
        except BaseException:
            _signal(process, signal.SIGKILL)
            raise
    code = TIMED_OUT if timed_out else process.returncode
    out, errors = (stream.text() for stream in streams)
    seconds = time.monotonic() - began
    return Run(shown(command), code, out, errors, seconds=seconds, timed_out=timed_out)


def _start(
    words: Sequence[str],
    environment: Mapping[str, str],
    *,
    cwd: str | None = None,
    has_input: bool,
) -> subprocess.Popen[bytes]:
    """As the leader of a process group, its streams in pipes. Raises: InvalidInput."""
    try:
        return subprocess.Popen(
            words,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.PIPE if has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise InvalidInput(f"{words[0]} cannot be started: {error.strerror}") from error


def _attend(
    process: subprocess.Popen[bytes],
    streams: tuple[_Stream, _Stream],
    given: bytes,
    end: float | None,
) -> bool:
    """Feed and read until it has ended; whether its time was over."""
    timed_out = False
    ended = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ, None)
            for pipe, stream in zip((process.stdout, process.stderr), streams, strict=True):
                assert pipe is not None
                selector.register(pipe, selectors.EVENT_READ, stream)
            if process.stdin is not None:
                os.set_blocking(process.stdin.fileno(), False)
                selector.register(process.stdin, selectors.EVENT_WRITE, None)
            view = memoryview(given)
            running = True
            while running or len(selector.get_map()) > 0:
                left = DRAIN_S if not running else None if end is None else end - time.monotonic()
                events = selector.select(None if left is None else max(left, 0.0))
                if not events:
                    if not running:
                        break
                    _signal(process, signal.SIGKILL if timed_out else signal.SIGTERM)
                    timed_out, end = True, time.monotonic() + KILL_AFTER_S
                    continue
                for key, _ in events:
                    if key.fd == ended:
                        running = False
                        selector.unregister(ended)
                    elif key.data is None:
                        view = _feed(process, selector, view)
                    else:
                        _take(selector, key)
    finally:
        os.close(ended)
        process.poll()
    return timed_out


def _feed(
    process: subprocess.Popen[bytes], selector: selectors.BaseSelector, view: memoryview
) -> memoryview:
    assert process.stdin is not None
    try:
        view = view[os.write(process.stdin.fileno(), view[:_CHUNK]) :] if view else view
    except BrokenPipeError:
        view = view[len(view) :]
    if not view:
        selector.unregister(process.stdin)
        with suppress(BrokenPipeError):
            process.stdin.close()
    return view


def _take(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    data = os.read(key.fd, _CHUNK)
    key.data.take(data)
    if not data:
        selector.unregister(key.fileobj)


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


@dataclass(frozen=True, slots=True)
class Captured:
    """A program that has ended, and all that it wrote."""

    code: int
    output: bytes
    errors: bytes


def capture(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout_s: float,
    given: bytes | None = None,
) -> Captured:
    """Run a program that says little. One that does not even die, as it waits for a mount, is left
    behind. Raises: InvalidInput where it cannot be started, Stopped."""
    process = _start(words, environment, has_input=given is not None)
    try:
        with stoppable(lambda: _signal(process, signal.SIGKILL)):
            output, errors = process.communicate(given, timeout_s)
    except BaseException as error:
        _signal(process, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=KILL_AFTER_S)
        if isinstance(error, subprocess.TimeoutExpired):
            return Captured(TIMED_OUT, b"", b"")
        raise
    return Captured(process.returncode, output, errors)


def run_with_terminal(command: Command, *, cwd: str, environment: Mapping[str, str]) -> int:
    """Run `command` with our own terminal and streams; its exit code, 128 and the number where a
    signal ended it, as the shell has it.

    Ctrl-C reaches it by the terminal; SIGTERM and SIGHUP are passed on. Raises: InvalidInput.
    """
    words = words_of(command)
    before = {signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    before[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    reset = tuple(before)
    early: list[int] = []  # what comes before the command has begun
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _frame: object) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, pass_on)
    try:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=dict(environment),
            restore_signals=True,
            preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in reset],
        )
        for came in early:
            process.send_signal(came)
        code = process.wait()
    except OSError as error:
        raise InvalidInput(f"{words[0]} cannot be started: {error.strerror}") from error
    finally:
        _restore(before)
    return code if code >= 0 else 128 - code


def _restore(handlers: Mapping[signal.Signals, object]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)  # type: ignore[arg-type]
