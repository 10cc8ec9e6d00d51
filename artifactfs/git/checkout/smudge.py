"""The conversions that git does itself when it writes a file: line ends, ``$Id$``, encodings.

As ``convert.c``: first ident, then line ends, then the encoding, then a filter (`filters`). Where
neither content nor a command decides, git works on a stream, whose rules for ``$Id$`` differ in
corner cases from those for a whole content (`_expand_stream` and `_expand_whole`).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import re

from artifactfs.git.checkout.conversion import Conversion
from artifactfs.git.pack.format import Oid

log = logging.getLogger(__name__)

_LONE_LF = re.compile(rb"(?<!\r)\n")
_BOMS = {"utf16lebom": ("UTF-16LE", b"\xff\xfe"), "utf16bebom": ("UTF-16BE", b"\xfe\xff")}
_PRINTABLE = bytes([8, 9, 12, 27, *range(32, 127), *range(128, 256)])
_LINE_ENDS = b"\r\n"


def to_worktree(content: bytes, oid: Oid, conversion: Conversion) -> bytes:
    """What git writes for the blob `oid`, before a filter. Takes 1 ms per MB and conversion."""
    if conversion.ident:
        streams = not (conversion.eol == "auto" or conversion.encoding or conversion.filter)
        expand = _expand_stream if streams else _expand_whole
        content = expand(content, b"$Id: %b $" % oid.hex().encode())
    if conversion.eol and (conversion.eol == "text" or _is_lf_text(content)):
        content = _LONE_LF.sub(b"\r\n", content)
    if conversion.encoding and content:
        content = _encode(content, conversion.encoding)
    return content


def _is_lf_text(content: bytes) -> bool:
    """Whether ``text=auto`` converts: text by its looks, and no CR in it (``gather_stats``)."""
    if b"\r" in content or b"\0" in content:
        return False
    others = content.translate(None, _PRINTABLE + _LINE_ENDS)
    nonprintable = len(others) - content.endswith(b"\x1a")
    line_ends = content.count(b"\n")
    printable = len(content) - len(others) - line_ends
    return printable >> 7 >= nonprintable


# $Id$


def _expand_whole(content: bytes, expanded: bytes) -> bytes:
    """``ident_to_worktree``."""
    out: list[bytes] = []
    at = 0
    while (dollar := content.find(b"$", at)) >= 0:
        dollar += 1
        out.append(content[at:dollar])
        at = dollar
        if content[at : at + 3] == b"Id$":
            at += 3
        elif content[at : at + 3] == b"Id:":
            end = content.find(b"$", at + 3)
            if end < 0:
                break
            inside = content[at + 3 : end]
            space = inside.find(b" ", 1)
            if b"\n" in inside or 0 <= space < len(inside) - 1:
                continue
            at = end + 1
        else:
            continue
        out.append(expanded[1:])
    out.append(content[at:])
    return b"".join(out)


_IDENT = re.compile(rb"\$(?:Id?\x00?)?")
_KEYWORD_END = re.compile(rb"[$\n]")


def _expand_stream(content: bytes, expanded: bytes) -> bytes:
    """``ident_filter_fn``. A byte that ends a false start is not looked at again, and a false
    start of the form ``$Idx`` right before a keyword becomes part of it."""
    out: list[bytes] = []
    held = b""
    at = 0
    while (start := content.find(b"$", at)) >= 0:
        if start > at:
            out += [held, content[at:start]]
            held = b""
        head = _IDENT.match(content, start)
        assert head is not None
        begun = head[0] if head[0] != b"$I\0" else b"$I"  # git takes the end of "$Id" for a byte
        end = start + len(begun)
        following = content[end : end + 1]
        at = end + 1
        if begun != b"$Id":
            out += [held, begun, following]
            held = b""
        elif following == b"$":
            out += [held, expanded]
            held = b""
        elif following != b":":
            held += begun + following
        else:
            stop = _KEYWORD_END.search(content, at)
            at = stop.end() if stop else len(content)
            keyword = held + content[end - 3 : at]
            held = b""
            foreign = not stop or stop[0] != b"$" or _is_foreign(keyword)
            out.append(keyword if foreign else expanded)
    out += [held, content[at:]]
    return b"".join(out)


_FOREIGN = re.compile(rb"[ \t\r\n](?!\$)")


def _is_foreign(keyword: bytes) -> bool:
    """``is_foreign_ident``: an id of another system, with spaces in other places than git's."""
    if not keyword.startswith(b"$Id: "):
        return False
    return _FOREIGN.search(keyword[5:].partition(b"\0")[0]) is not None


# Encodings


def _encode(content: bytes, encoding: str) -> bytes:
    """`content` in `encoding`; as it is, where that cannot be (git says so and goes on, too)."""
    key = encoding.lower().replace("-", "")
    name, mark = _BOMS.get(key, (encoding, b""))
    converted = _iconv(content, name)
    if converted is None:
        log.warning("failed to encode a file from UTF-8 to %s", encoding)
        return content
    return mark + converted


@functools.cache
def _libc() -> ctypes.CDLL:
    """The C library, whose ``iconv`` is the one that git uses."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.iconv_open.restype = ctypes.c_void_p
    libc.iconv_open.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    libc.iconv.restype = ctypes.c_size_t
    size = ctypes.POINTER(ctypes.c_size_t)
    text = ctypes.POINTER(ctypes.c_void_p)
    libc.iconv.argtypes = (ctypes.c_void_p, text, size, text, size)
    libc.iconv_close.argtypes = (ctypes.c_void_p,)
    return libc


def _iconv(content: bytes, encoding: str) -> bytes | None:
    """Convert from UTF-8. None: the encoding is not known, or lacks a character."""
    libc = _libc()
    try:
        converter = libc.iconv_open(encoding.encode("latin-1"), b"UTF-8")
    except ValueError:  # a NUL in the name
        return None
    if converter in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        return _run_iconv(libc, converter, content)
    finally:
        libc.iconv_close(converter)


def _run_iconv(libc: ctypes.CDLL, converter: int, content: bytes) -> bytes | None:
    source = ctypes.create_string_buffer(content, len(content))
    room = 2 * len(content) + 64
    target = ctypes.create_string_buffer(room)
    out: list[bytes] = []
    source_at = ctypes.c_void_p(ctypes.addressof(source))
    source_left = ctypes.c_size_t(len(content))
    while True:
        target_at = ctypes.c_void_p(ctypes.addressof(target))
        target_left = ctypes.c_size_t(room)
        result = libc.iconv(
            converter,
            ctypes.byref(source_at),
            ctypes.byref(source_left),
            ctypes.byref(target_at),
            ctypes.byref(target_left),
        )
        error = ctypes.get_errno()
        out.append(target.raw[: room - target_left.value])
        if result != ctypes.c_size_t(-1).value:
            return b"".join(out)
        if error != errno.E2BIG:
            return None
