"""The kernel's requests. Thin: each finds its inodes, lets the tree do the work, and replies.

Only `FUSEError` may leave a handler (anything else would end the mount), so every handler runs
inside `_answering`. Where a handler may wait is written at it; all others answer at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
)

from artifactfs.errors import ArtifactFSError
from artifactfs.fs.content.contents import Contents
from artifactfs.fs.gitview.virtual import GITFILE, VirtualFiles
from artifactfs.fs.inodes.attributes import (
    CleanFileAttributes,
    dots_entry,
    entry_attributes,
    negative_entry,
    unreadable_entry,
)
from artifactfs.fs.inodes.inode import Directory, Inode, Row
from artifactfs.fs.kernel.extension import Session
from artifactfs.fs.kernel.handover import RESENT
from artifactfs.fs.kernel.interrupt import Opener
from artifactfs.fs.kernel.privileges import (
    has_privileges,
    mode_after_change,
    mode_after_truncation,
    mode_that_may_be,
)
from artifactfs.fs.kernel.refusal import errno_of
from artifactfs.fs.listing.ahead import LOOKS, ListingsAhead
from artifactfs.fs.listing.unfinished import Listing, UnfinishedListings, is_at_end
from artifactfs.fs.mount.arriving import ArrivingTrees
from artifactfs.fs.mount.once import MAKES, ONCE, Once
from artifactfs.fs.overlay.written import Written
from artifactfs.fs.tree.mutations import NAME_MAX, RENAME_EXCHANGE, Mutations, check_name
from artifactfs.fs.tree.recall import Recall
from artifactfs.fs.tree.tree import Held, Tree
from artifactfs.fs.tree.xattrs import Xattrs
from artifactfs.git.objects.database import MissingObject

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

_WRITES = os.O_WRONLY | os.O_RDWR

_FORGOTTEN_TOGETHER = 500
"""Files without a name that are written down as forgotten in one record."""

_NUMBERS = {"link": (0, 1), "rename": (0, 2), "statfs": (), "release": (), "releasedir": ()}
"""Which arguments of a request are inode numbers; of others the first one is."""


def _answering(handler: F) -> F:
    """Count the request, and turn every error of `handler` into the errno that the program gets."""
    name = handler.__name__
    changes, looks = name in ONCE, name in LOOKS

    @functools.wraps(handler)
    async def answer(self: Operations, *args: Any) -> Any:
        self.requests[name] += 1
        self._sequence = request = self._sequence + 1
        self._unanswered[request] = (trio.current_time(), name, args)
        if self._ahead is not None and not looks:
            self._ahead.take_back()
        overlay, once, unique = self._written.overlay, self.once, 0
        try:
            if once.on and (changes or once.done):
                assert self.session is not None and self.session.unique is not None
                unique = self.session.unique()
                if once.was_done(unique):
                    return await self._answer_again(name, args, unique)
            if self.arriving is not None:
                owns, caller = self._virtual.owns, self._contents.caller
                self._waited_for = await self.arriving.before(name, args, owns, caller)
            if self.recall is not None:
                await self._bring(self.recall, name, args)
            if changes:
                overlay.answering = unique & ~RESENT
            return await handler(self, *args)
        except FUSEError:
            raise
        except OSError as error:
            code = errno_of(error)
            if code != error.errno:
                self.log_failure(name, error)
            raise FUSEError(code) from error
        except ArtifactFSError as error:
            raise FUSEError(getattr(error, "errno", errno.EIO)) from error
        except MissingObject as error:
            self.log_failure(name, error)
            raise FUSEError(errno.EIO) from error
        except Exception as error:
            log.exception("request failed", extra={"operation": name})
            raise FUSEError(errno.EIO) from error
        finally:
            overlay.answering = 0
            del self._unanswered[request]

    return answer  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request that waits, of the process `pid` (0: not known), for so many seconds."""

    operation: str
    pid: int
    seconds: float


class Operations(pyfuse3.Operations):
    """The requests of one mount."""

    supports_dot_lookup = False

    def __init__(
        self,
        *,
        name: str,
        tree: Tree,
        written: Written,
        mutations: Mutations,
        contents: Contents,
        virtual: VirtualFiles,
        xattrs: Xattrs | None,
        index_ready: trio.Event,
    ) -> None:
        super().__init__()
        self.name = name
        self.started = trio.Event()
        self.requests: Counter[str] = Counter()
        """How many were answered here, by what they ask for."""
        self._sequence = 0
        self._unanswered: dict[int, tuple[float, str, tuple[Any, ...]]] = {}
        self.session: Session | None = None
        self._no_open = self._no_opendir = False
        self._openers: dict[int, Opener] = {}
        """By file: who opened it last. Only where the kernel says when it is opened and closed."""
        self._asked = 0
        self.recall: Recall | None = None
        """Where another process has served this mount: the kernel knows what we do not."""
        self.on_begin: Callable[[], None] | None = None
        """Is called when it is known what the session has, before the first request."""
        self.once = Once(written.overlay)
        self.arriving: ArrivingTrees | None = None  # the mount began before all trees were here
        self._waited_for = 0
        """Who has sent the request for which something was waited for here; 0: nothing was."""
        self._tree = tree
        self._written = written
        self._mutations = mutations
        self._contents = contents
        self._virtual = virtual
        self._xattrs = xattrs
        self._index_ready = index_ready
        self._unfinished = UnfinishedListings()
        self._ahead: ListingsAhead | None = None  # where there is the extension

    def oldest(self) -> Unanswered | None:
        """The request that has waited longest for its answer."""
        for since, name, args in self._unanswered.values():
            pid = getattr(args[-1], "pid", 0) if args else 0
            return Unanswered(name, int(pid), trio.current_time() - since)
        return None

    def init(self) -> None:
        if self.session is not None:
            self.session.begin()
            self._no_open = self.session.kernel_opens
            self._no_opendir = self.session.kernel_opens_directories
            if self._virtual.offered is not None:
                self._virtual.offered.extension = self.session.offers
            self._contents.caller = self.session.caller or self._opener
            if self.on_begin is not None:
                self.on_begin()
            waits = self.recall is not None or self.arriving is not None
            if self.session.keeps is not None:
                parts = (self._tree, self._contents, self._unfinished)
                self._ahead = ListingsAhead(self.session, self.session.keeps, *parts)
            if waits and self.session.caller is not None:
                self._contents.caller = partial(self._caller, self.session.caller)
        self.started.set()

    def sent(self) -> dict[str, int]:
        """How many requests the kernel has sent, by what they ask for."""
        return dict(self.requests + Counter(self.session.answered() if self.session else {}))

    def adopt(self, session: Session) -> None:
        """To be called before the first request: what libfuse can be told is in `session`."""
        self.session = session

    def _opener(self) -> int:
        """Of the file that the last read or write was for; 0: not known."""
        return self._openers.get(self._asked, 0)

    def outlive(self, listings: Path, *, taken_over: bool) -> None:
        """Have written down what another process needs that goes on with this mount, where
        programs write through us. Raises: OSError."""
        self._unfinished.outlive(listings, taken_over=taken_over)
        self.once.begin(taken_over=taken_over)

    async def _answer_again(self, name: str, args: tuple[Any, ...], unique: int) -> Any:
        """What the process before has done, and could not say any more."""
        try:
            return await self._what_it_would_say(name, args)
        finally:
            self.once.answered(unique)

    async def _what_it_would_say(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "getxattr":  # pyfuse3 asks in a `setxattr`; it passes on that all is well
            raise FUSEError(0)
        if name not in MAKES:
            return None
        at = MAKES[name]
        assert self.recall is not None
        await self.recall.bring(args[at])
        inode = self._tree.lookup(self._tree.directory(args[at]), args[at + 1])
        if inode is None:  # somebody else has removed it since
            raise FUSEError(errno.ENOENT)
        entry = self._reply_entry(inode)
        return (FileInfo(fh=inode.ino), entry) if name == "create" else entry

    @contextlib.contextmanager
    def _not_yet(self) -> Iterator[None]:
        """While this lasts, what is changed is no part of the request, which waits."""
        overlay = self._written.overlay
        request, overlay.answering = overlay.answering, 0
        yield
        overlay.answering = request

    def _note_victim(self, directory: Directory, name: bytes) -> None:
        """The kernel knows what it removes, also where the process before has shown it."""
        if self.recall is not None:
            inode = self._tree.lookup(directory, name)
            if inode is not None and inode.nlookup <= 0:
                inode.nlookup = 1

    async def _bring(self, recall: Recall, name: str, args: tuple[Any, ...]) -> None:
        """Have in memory what the request is about."""
        self._waited_for = waited_for = 0
        for position in _NUMBERS.get(name, (0,)):
            ino = args[position]
            if self._tree.find(ino) is None and not self._virtual.owns(ino):
                waited_for = waited_for or self._contents.caller()
                await recall.bring(ino)
        self._waited_for = waited_for

    def _caller(self, of_the_last: Callable[[], int]) -> int:
        """Of the request whose handler has just begun."""
        return self._waited_for or of_the_last()

    def log_failure(self, operation: str, error: Exception) -> None:
        log.error(
            "request failed",
            extra={"repo": self.name, "operation": operation, "cause": str(error)},
        )

    # Names and attributes

    @_answering
    async def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Waits only for names of objects that git is offered, and for what is in a ``.git`` that
        is not there yet; the caller can be killed."""
        if len(name) > NAME_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        if self._virtual.reserves(parent, name):
            offered = self._virtual.offered
            if offered is not None and offered.owns(parent):
                return await offered.lookup(parent, name, ctx.pid)
            await self._virtual.before_lookup(parent, name, ctx.pid)
            ino = self._virtual.lookup(parent, name)
            return negative_entry() if ino is None else self._virtual.attributes(ino)
        directory = self._tree.directory(parent)
        inode = self._tree.lookup(directory, name)
        if inode is None:
            return negative_entry()
        return self._reply_entry(inode)

    def _reply_entry(self, inode: Inode) -> EntryAttributes:
        """Attributes of an inode to which the kernel gets one more reference."""
        try:
            self._tree.refresh_attributes(inode)
        except BaseException:
            self._tree.drop_if_unused(inode)
            raise
        entry = entry_attributes(inode, self._tree.owner)
        inode.nlookup += 1
        return entry

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        if self._ahead is not None:
            self._ahead.take_back()
        for ino, count in inode_list:
            try:
                if self._virtual.owns(ino):
                    self._virtual.forget(ino, count)
                else:
                    self._tree.forget(ino, count)
            except OSError as error:
                self.log_failure("forget", error)
        try:
            self._tree.forget_nameless(at_least=_FORGOTTEN_TOGETHER)
        except OSError as error:
            self.log_failure("forget", error)

    def close(self) -> None:
        """To be called when the mount is no longer served."""
        self._unfinished.close()

    @_answering
    async def getattr(self, ino: int, ctx: RequestContext) -> EntryAttributes:
        """Waits where the size is not known; the caller can be killed."""
        if self._virtual.owns(ino):
            return self._virtual.attributes(ino)
        inode = self._tree.get(ino)
        if not self._tree.refresh_attributes(inode):
            await self._contents.ensure_size(inode, ctx.pid)
        return entry_attributes(inode, self._tree.owner)

    @_answering
    async def setattr(
        self,
        ino: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Waits for the content where a file that is not here is cut in the middle."""
        if self._virtual.owns(ino):
            raise FUSEError(errno.EPERM)
        inode = self._tree.get(ino)
        if fields.update_size:
            await self._contents.truncate(inode, attr.st_size, ctx.pid)
        mode = attr.st_mode if fields.update_mode else None
        if has_privileges(inode.mode):
            mode = self._without_privileges(inode, mode, fields, ctx)
        uid = attr.st_uid if fields.update_uid else None
        gid = attr.st_gid if fields.update_gid else None
        atime_ns = attr.st_atime_ns if fields.update_atime else None
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else None
        if fields.update_size and atime_ns is None:
            mtime_ns = None  # the truncation has set it
        if (mode, uid, gid, atime_ns, mtime_ns) != (None,) * 5:
            self._mutations.set_attributes(
                inode, mode=mode, uid=uid, gid=gid, atime_ns=atime_ns, mtime_ns=mtime_ns
            )
        if not self._tree.refresh_attributes(inode):
            await self._contents.ensure_size(inode, ctx.pid)
        return entry_attributes(inode, self._tree.owner)

    def _without_privileges(
        self, inode: Inode, mode: int | None, fields: SetattrFields, ctx: RequestContext
    ) -> int | None:
        """The mode after a change that may take set-ID bits away; `mode` is what it asks for."""
        group = self._group(inode)
        if mode is not None:
            return mode_that_may_be(mode, group, ctx.pid, ctx.gid)
        if fields.update_size:
            return mode_after_truncation(inode.mode, group, ctx.pid, ctx.uid, ctx.gid)
        if fields.update_atime or fields.update_mtime:
            return None
        return mode_after_change(inode.mode, group, ctx.pid, ctx.gid)

    def _group(self, inode: Inode) -> int:
        return self._tree.owner.gid if inode.row is None else inode.row.gid

    @_answering
    async def readlink(self, ino: int, ctx: RequestContext) -> bytes:
        """Waits for the content; the caller can be killed."""
        offered = self._virtual.offered
        if offered is not None and offered.is_object(ino):
            return await offered.fetch(ino, ctx.pid)
        return await self._contents.link_target(self._tree.get(ino), ctx.pid)

    # Changing names

    def _place(self, parent: int, name: bytes, refusal: int = errno.EPERM) -> Directory:
        """The directory to change `name` in."""
        check_name(name)
        if self._virtual.reserves(parent, name):
            raise FUSEError(refusal)
        return self._tree.directory(parent)

    @_answering
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._place(parent, name, errno.EEXIST)
        if stat.S_ISREG(mode):
            inode = self._mutations.create(directory, name, mode, ctx)
        else:
            inode = self._mutations.mknod(directory, name, mode, rdev, ctx)
        return self._reply_entry(inode)

    @_answering
    async def mkdir(
        self, parent: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._place(parent, name, errno.EEXIST)
        made = self._mutations.mkdir(directory, name, mode, ctx)
        return self._reply_entry(made)

    @_answering
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        directory = self._place(parent, name, errno.EEXIST)
        made = self._mutations.symlink(directory, name, target, ctx)
        return self._reply_entry(made)

    @_answering
    async def link(
        self, ino: int, parent: int, name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        if self._virtual.owns(ino):
            raise FUSEError(errno.EPERM)
        inode = self._tree.get(ino)
        place = self._place(parent, name, errno.EEXIST)
        if inode.parent is not None:
            with self._not_yet():
                await self._contents.before_move(inode.parent, inode.name, place, name, ctx.pid)
        self._mutations.link(inode, place, name)
        return self._reply_entry(inode)

    @_answering
    async def unlink(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._place(parent, name)
        self._note_victim(directory, name)
        self._mutations.unlink(directory, name)

    @_answering
    async def rmdir(self, parent: int, name: bytes, ctx: RequestContext) -> None:
        directory = self._place(parent, name)
        self._note_victim(directory, name)
        self._mutations.rmdir(directory, name)

    @_answering
    async def rename(
        self,
        old: int,
        old_name: bytes,
        new: int,
        new_name: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        source = self._place(old, old_name)
        target = self._place(new, new_name)
        with self._not_yet():
            await self._contents.before_move(source, old_name, target, new_name, ctx.pid)
            if flags & RENAME_EXCHANGE:
                await self._contents.before_move(target, new_name, source, old_name, ctx.pid)
        self._note_victim(target, new_name)
        self._mutations.rename(source, old_name, target, new_name, flags)
        self._contents.after_move(self._tree.lookup(target, new_name))

    # Files. The handle of one is its number.

    @_answering
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Where the kernel opens files by itself, it makes them by `mknod`: see `extension`."""
        if self._no_open:
            raise FUSEError(errno.ENOSYS)
        directory = self._place(parent, name, errno.EEXIST)
        inode = self._mutations.create(directory, name, mode, ctx)
        self._openers[inode.ino] = Opener(ctx.pid)
        return FileInfo(fh=inode.ino), self._reply_entry(inode)

    @_answering
    async def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Asked once where the kernel opens files by itself. Content is fetched by reading."""
        if self._no_open:
            raise FUSEError(errno.ENOSYS)
        if flags & os.O_TRUNC and flags & _WRITES:
            if self._virtual.owns(ino):
                raise FUSEError(errno.EPERM)
            await self._truncate_opened(self._tree.get(ino), ctx)
        self._openers[ino] = Opener(ctx.pid)
        return FileInfo(fh=ino)

    async def _truncate_opened(self, inode: Inode, ctx: RequestContext) -> None:
        """``O_TRUNC`` with ``ATOMIC_O_TRUNC``: the kernel sends no `setattr`, and takes no set-ID
        bits away, whatever it was told."""
        await self._contents.truncate(inode, 0, ctx.pid)
        if has_privileges(inode.mode):
            mode = mode_after_truncation(inode.mode, self._group(inode), ctx.pid, ctx.uid, ctx.gid)
            self._mutations.set_attributes(inode, mode=mode)

    @_answering
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """Waits for the content where it is not here. The reader can be killed."""
        self._asked = fh
        inode = self._tree.find(fh)
        if inode is not None:
            return await self._contents.read(inode, offset, size)
        content = self._virtual.content(fh)
        if content is None:
            await self._index_ready.wait()
            content = self._virtual.gitfile
        return content[offset : offset + size]

    @_answering
    async def write(self, fh: int, offset: int, buffer: bytes) -> int:
        """The first write to a file waits for its content; the caller can be killed."""
        self._asked = fh
        if self._virtual.owns(fh):
            raise FUSEError(errno.EACCES)
        return await self._contents.write(self._tree.get(fh), offset, buffer)

    @_answering
    async def release(self, fh: int) -> None:
        self._openers.pop(fh, None)

    @_answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Waits for the disk."""
        await self._contents.sync(self._tree.find(fh))

    # Directories

    @_answering
    async def opendir(self, ino: int, ctx: RequestContext) -> int:
        """The handle of a directory is its number. Asked once where the kernel opens directories
        by itself, and caches them."""
        if self._no_opendir:
            raise FUSEError(errno.ENOSYS)
        return ino

    @_answering
    async def readdir(self, fh: int, start: int, token: ReaddirToken) -> None:
        """Entries 1 and 2 are ``.`` and ``..``; in the root the gitfile follows."""
        if self._virtual.owns(fh):
            self._list_offered(fh, start, token)
            return
        if is_at_end(start):
            return
        tree, directory = self._tree, self._tree.directory(fh)
        listing, position = self._unfinished.resume(start)
        if listing is None:
            names = tree.listing(directory)
            if directory is tree.root:
                names.insert(0, GITFILE)
            listing = self._unfinished.begin(names, self._contents.sizes_in(directory))
        for number in range(position, 2):
            dots = dots_entry((directory if number == 0 else directory.parent or directory).ino)
            name, cookie = b"." * (number + 1), listing.cookie(number + 1)
            if not pyfuse3.readdir_reply(token, name, dots, cookie):
                self._unfinished.keep(listing)
                return
        if not self._list(directory, listing, max(position, 2), token):
            self._unfinished.keep(listing)
            return
        self._unfinished.drop(listing)
        if self._ahead is not None:
            self._ahead.listed(directory)

    def _list(
        self, directory: Directory, listing: Listing, start: int, token: ReaddirToken
    ) -> bool:
        """False where the kernel's buffer was full before the end."""
        tree, names = self._tree, listing.names
        lookup, reply, cookie = tree.lookup, pyfuse3.readdir_reply, listing.cookie
        rows = self._rows_in(directory)
        sizes, is_blob = listing.sizes, None
        attributes = CleanFileAttributes(tree.owner, directory.time_ns)
        hold: Callable[[bytes, int], Held | None] | None = None
        with contextlib.suppress(OSError, ArtifactFSError, MissingObject):  # said of each name
            is_blob = self._contents.shows_blobs_in(directory)
            hold = tree.clean_files(directory)
        shift = 3 if directory is tree.root else 2
        for position in range(start, len(names) + 2):
            name = names[position - 2]
            if name == GITFILE and directory is tree.root:
                entry = self._virtual.attributes(self._virtual.git_ino)
                if not reply(token, name, entry, cookie(position + 1)):
                    return False
                continue
            inode = None
            try:
                held = None
                if hold is not None and (is_blob is None or is_blob(name)):
                    held = hold(name, position - shift)
                if held is not None:
                    entry = attributes.of(held.ino, held.mode, sizes.get(held.oid))
                    if not reply(token, name, entry, cookie(position + 1)):
                        tree.forget(held.ino, 1)
                        return False
                    continue
                inode = lookup(directory, name, rows)
                if inode is None:  # removed since the listing began
                    continue
                entry = self._attributes(inode, listing)
            except (OSError, ArtifactFSError, MissingObject) as error:
                tree.drop_if_unused(inode)
                self._log_unreadable(directory, name, error)
                if not reply(token, name, unreadable_entry(), cookie(position + 1)):
                    return False
                continue
            if not reply(token, name, entry, cookie(position + 1)):
                tree.drop_if_unused(inode)
                return False
            inode.nlookup += 1
        return True

    def _rows_in(self, directory: Directory) -> Mapping[int, Row]:
        """What is known of the rows of a directory in one query; the rest is asked one by one."""
        try:
            if len(self._tree.names(directory)) > 1:
                return self._written.overlay.rows_in(directory.ino)
        except OSError as error:
            self.log_failure("readdir", error)
        return {}

    def _log_unreadable(self, directory: Directory, name: bytes, error: Exception) -> None:
        path = os.fsdecode(self._tree.child_path(directory, name) or name)
        self.log_failure("readdir", OSError(f"{path}: {error}"))

    def _list_offered(self, ino: int, start: int, token: ReaddirToken) -> None:
        offered = self._virtual.offered
        for name, entry, after in offered.entries(ino, start) if offered is not None else ():
            if not pyfuse3.readdir_reply(token, name, entry, after):
                return

    def _attributes(self, inode: Inode, listing: Listing) -> EntryAttributes:
        self._tree.refresh_attributes(inode, listing.sizes)
        return entry_attributes(inode, self._tree.owner)

    @_answering
    async def releasedir(self, fh: int) -> None:
        return

    @_answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Waits for the disk."""
        await self._contents.sync(None)

    # The whole

    @_answering
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        found = self._written.upper.free_space()
        reply = pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail"):
            setattr(reply, f"f_{name}", getattr(found, f"f_{name}"))
        reply.f_namemax = NAME_MAX
        return reply

    # Extended attributes. ENOSYS (they are off) stops the kernel asking.

    @_answering
    async def getxattr(self, ino: int, name: bytes, ctx: RequestContext) -> bytes:
        return self._extended(ino).get(ino, name)

    @_answering
    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._extended(ino).set(self._tree.get(ino), name, value)

    @_answering
    async def listxattr(self, ino: int, ctx: RequestContext) -> Sequence[bytes]:
        return [] if self._virtual.owns(ino) else self._extended(ino).list(ino)

    @_answering
    async def removexattr(self, ino: int, name: bytes, ctx: RequestContext) -> None:
        self._extended(ino).remove(self._tree.get(ino), name)

    def _extended(self, ino: int) -> Xattrs:
        if self._xattrs is None:
            raise FUSEError(errno.ENOSYS)
        if self._virtual.owns(ino):
            raise FUSEError(errno.ENOTSUP)
        return self._xattrs
