"""Which conversion a file gets when git checks it out (``convert.c``), by attributes and settings.

The settings are those of the moment when a repository was mounted first, as those of a clone are
in what it wrote: a later change of ``core.autocrlf`` rewrites no file of a clone either.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, Self

from artifactfs.errors import CorruptData
from artifactfs.git.checkout.attributes import Attributes, Source, Value, parse
from artifactfs.paths import leads_into

NAMES = (b"text", b"crlf", b"eol", b"ident", b"filter", b"working-tree-encoding")

CONFIG_KEYS = r"^(core\.(autocrlf|eol|attributesfile)|filter\..*\.(smudge|process|clean))$"
"""For ``git config -z --get-regexp``: what `ConversionSettings.read` wants to know."""

_SYSTEM_ATTRIBUTES = Path("/etc/gitattributes")
_UTF8 = re.compile(rb"utf-?8", re.IGNORECASE)

Eol = Literal["auto", "text"]
"""Line ends become CRLF: in what looks like text with LF only, or in any case."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """From a blob to the file that git writes. At least one field says something."""

    eol: Eol | None = None
    ident: bool = False
    encoding: str | None = None
    filter: str | None = None
    """Name of the filter driver, which has a smudge or process command."""


@dataclass(frozen=True, slots=True)
class ConversionSettings:
    """What a user's and a system's configuration says, apart from the tree's own files.

    `autocrlf` is "false", "true" or "input"; `eol` is "crlf" or "lf". `filters` and `cleans` are
    the drivers that have a command for that direction. The attribute files are kept as text.
    """

    autocrlf: str = "false"
    eol: str = "lf"
    filters: tuple[str, ...] = ()
    cleans: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    """Contents by place: "system", "global", "info"; latin-1, so that any bytes survive."""

    @classmethod
    def read(cls, config: bytes, gitdir: Path, mount: str | None = None) -> Self:
        """From the output of ``git config``, and the attribute files that are there now.

        Those in `mount` do not count: who serves it must not look into it.
        """
        items = [item.partition("\n") for item in os.fsdecode(config).split("\0") if item]
        last = {key: value if newline else "true" for key, newline, value in items}
        files = {
            "system": None if _is_true(os.environ.get("GIT_ATTR_NOSYSTEM")) else _SYSTEM_ATTRIBUTES,
            "global": _global_attributes(last.get("core.attributesfile")),
            "info": gitdir / "info" / "attributes",
        }
        texts = {
            place: _text(path)
            for place, path in files.items()
            if path is not None and not (mount and leads_into(str(path), mount))
        }
        eol = last.get("core.eol", "").lower()
        return cls(
            _autocrlf(last.get("core.autocrlf")),
            "crlf" if eol == "crlf" else "lf",
            _drivers(last, ".smudge"),
            _drivers(last, ".clean"),
            {place: text for place, text in texts.items() if text},
        )

    def to_json(self) -> str:
        """With the CRC-32 of what they say."""
        said = json.dumps(asdict(self))
        return json.dumps({**json.loads(said), "checksum": zlib.crc32(said.encode())})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises: CorruptData."""
        try:
            found = json.loads(text)
            checksum = found.pop("checksum", None)  # earlier versions wrote none
            if checksum is not None and checksum != zlib.crc32(json.dumps(found).encode()):
                raise ValueError("they do not match their checksum")
            for name in ("filters", "cleans"):
                found[name] = tuple(found[name])
            return cls(**found)
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptData(f"the settings of conversions are malformed: {error}") from None

    def source(self, place: str) -> Source:
        """The attribute file at `place`."""
        content = self.attributes.get(place, "").encode("latin-1")
        return Source(b"", parse(content, macros=True, is_file=True))

    @property
    def text_is_crlf(self) -> bool:
        """Whether a file that is text, with no more said, gets CRLF."""
        return self.autocrlf == "true" or (self.autocrlf == "false" and self.eol == "crlf")


class Converter:
    """Decides about the files of one directory, by the attribute files that bear on it."""

    def __init__(self, settings: ConversionSettings, tree_files: Iterable[Source]) -> None:
        """`tree_files` are the .gitattributes of the tree, the root's first."""
        self._settings = settings
        sources = [settings.source("system"), settings.source("global"), *tree_files]
        self._attributes = Attributes([*sources, settings.source("info")], NAMES)
        self._can_convert = self._may_convert()

    @property
    def by_path(self) -> bool:
        """Whether more than the last part of a path can make a difference."""
        return self._attributes.by_path

    def can_convert(self) -> bool:
        """Whether there may be a file that is converted."""
        return self._can_convert

    def _may_convert(self) -> bool:
        settings, values = self._settings, self._attributes.values()
        if settings.autocrlf == "true" or True in values[b"ident"]:
            return True
        if any(_driver(value, settings.filters) for value in values[b"filter"]):
            return True
        if any(_encoding(value) for value in values[b"working-tree-encoding"]):
            return True
        if b"crlf" in values[b"eol"]:
            return True
        return settings.text_is_crlf and bool(values[b"text"] | values[b"crlf"] | values[b"eol"])

    def conversion(self, path: bytes) -> Conversion | None:
        """What `path`, a regular file, gets on its way to the working tree; None: nothing."""
        said = self._attributes.lookup(path)
        found = Conversion(
            _output_eol(_text_action(said, self._settings), self._settings),
            said.get(b"ident") is True,
            _encoding(said.get(b"working-tree-encoding")),
            _driver(said.get(b"filter"), self._settings.filters),
        )
        return None if found == _NOTHING else found

    def converts_to_git(self, path: bytes) -> bool:
        """Whether git converts `path` on its way into the repository (``would_convert_to_git``)."""
        said = self._attributes.lookup(path)
        return (
            _text_action(said, self._settings) != "binary"
            or said.get(b"ident") is True
            or _encoding(said.get(b"working-tree-encoding")) is not None
            or _driver(said.get(b"filter"), self._settings.cleans) is not None
        )


_NOTHING = Conversion()

_Action = Literal["binary", "text", "text-crlf", "text-lf", "auto", "auto-crlf", "auto-lf"]


def _text_action(said: Mapping[bytes, Value], settings: ConversionSettings) -> _Action:
    """``convert_attrs`` of convert.c."""
    action = _of_text(said.get(b"text")) or _of_text(said.get(b"crlf"))
    if action == "binary":
        return action
    eol = said.get(b"eol")
    if eol == b"lf":
        action = "auto-lf" if action == "auto" else "text-lf"
    elif eol == b"crlf":
        action = "auto-crlf" if action == "auto" else "text-crlf"
    if action is not None:
        return action
    return {"true": "auto-crlf", "input": "auto-lf"}.get(  # type: ignore[return-value]
        settings.autocrlf, "binary"
    )


def _of_text(value: Value) -> _Action | None:
    """What ``text``, or ``crlf`` of old, says alone."""
    if value is True:
        return "text"
    if value is False:
        return "binary"
    if value == b"input":
        return "text-lf"
    return "auto" if value == b"auto" else None


def _output_eol(action: _Action, settings: ConversionSettings) -> Eol | None:
    kind, _, eol = action.partition("-")
    if kind == "binary" or eol == "lf" or (not eol and not settings.text_is_crlf):
        return None
    return "auto" if kind == "auto" else "text"


def _encoding(value: Value) -> str | None:
    if not isinstance(value, bytes) or not value or _UTF8.fullmatch(value):
        return None
    return value.decode("latin-1")


def _driver(value: Value, drivers: tuple[str, ...]) -> str | None:
    name = os.fsdecode(value) if isinstance(value, bytes) else None
    return name if name in drivers else None


def _drivers(config: Mapping[str, str], variable: str) -> tuple[str, ...]:
    """The drivers with a command for one direction; `process` serves both, and goes first."""
    found = set()
    for key, value in config.items():
        name = key.removeprefix("filter.").removesuffix(variable)
        if key == f"filter.{name}{variable}" and value and f"filter.{name}.process" not in config:
            found.add(name)
        name = key.removeprefix("filter.").removesuffix(".process")
        if key == f"filter.{name}.process" and value:
            found.add(name)
    return tuple(sorted(found))


def _autocrlf(value: str | None) -> str:
    if value is not None and value.lower() == "input":
        return "input"
    return "true" if _is_true(value) else "false"


def _is_true(value: str | None) -> bool:
    if value is None:
        return False
    return value.lower() not in ("false", "no", "off", "") and value.strip("0") != ""


def _global_attributes(configured: str | None) -> Path | None:
    if configured is not None:
        return Path(os.path.expanduser(configured)) if configured else None
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home, "git", "attributes")


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("latin-1")
    except OSError:
        return ""


class TreeConversions:
    """The conversions of a whole tree, by the contents of its .gitattributes files."""

    def __init__(self, settings: ConversionSettings, files: Mapping[bytes, bytes | None]) -> None:
        """`files` by directory (no slash at its end); None: the content is not here."""
        self._settings = settings
        self._files = files
        self._converters: dict[tuple[bytes, ...], Converter | None] = {}
        self._by_directory: dict[bytes, Converter | None] = {}

    def converter(self, directory: bytes) -> Converter | None:
        """For the files of `directory`; None: an attribute file that bears on them is not here."""
        if directory not in self._by_directory:
            chain = tuple(place for place in ancestors(directory) if place in self._files)
            if chain not in self._converters:
                self._converters[chain] = self._make(chain)
            self._by_directory[directory] = self._converters[chain]
        return self._by_directory[directory]

    def _make(self, chain: tuple[bytes, ...]) -> Converter | None:
        sources = []
        for place in chain:
            content = self._files[place]
            if content is None:
                return None
            sources.append(Source(place, parse(content, macros=not place)))
        return Converter(self._settings, sources)

    def shows_blob(self, path: bytes) -> bool:
        """Whether the regular file `path` is its blob, byte for byte, as far as is known."""
        converter = self.converter(path[: max(path.rfind(b"/"), 0)])
        if converter is None:
            return False
        return not converter.can_convert() or converter.conversion(path) is None


def ancestors(directory: bytes) -> Iterator[bytes]:
    """The root, …, `directory` itself."""
    yield b""
    position = 0
    while directory and position >= 0:
        position = directory.find(b"/", position + 1)
        yield directory if position < 0 else directory[:position]
