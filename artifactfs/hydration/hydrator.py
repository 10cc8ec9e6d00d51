"""Fetches the blobs of one mount: on demand, ahead of demand, and in the background.

The concurrency protocol
------------------------
All state is touched from one trio event loop; threads only do file I/O on files that nobody else
has (publishing a large blob, merging packs, SQLite writes behind a lock).

=====================  ==========================================================================
task                   what it touches
=====================  ==========================================================================
handler of the mount   `find`, `known_size`: synchronous, so atomic. `hydrate`: checks, joins
                       a `Want` and raises its reader count without an await in between; then only
                       waits. Cancellation lowers the reader count and leaves the want alone.
urgent lanes           take explicit wants and their companions and carry them, one flight at a
                       time each. Nothing else uses the urgent connections. Relief lanes do the same
                       for wants that wait because every urgent lane is at something slow.
background lanes       the same for readahead windows, prefetches and batches of the sweep; the
                       first lanes take windows only, so that a scan never queues behind the sweep.
planner                walks the tree of `start_sweep`, asks for sizes, then gives the inventory to
                       the sweep. Replaced whole when another tree is set.
turn                   waits while another worker sweeps the same tree.
recent history         lists the blobs of the commits of `start_recent`; the sweep ends with them.
health                 probes a remote that is down. It alone ends an outage, apart from a request
                       that succeeds.
listing                notes the sizes of what came in whole packs that somebody waited for.
upkeep                 sizes, large blobs, pack merging, the size limit.
=====================  ==========================================================================

What an await may change under one's feet:

* Between a look at the object database and the answer of the remote, another worker or flight may
  have fetched the blob. Before each attempt a flight looks again; after it, a reader does.
* A want is finished at most once, by the flight that fetches it, by an error, or by an outage. A
  finished want is out of the queue; whoever holds it reads its outcome, which never changes.
* A blob is handed to its readers before its pack is in place. Until the flight has landed, it may
  be in memory only; a reader that comes in that time and finds it evicted waits for the landing.
* A want may be carried by two flights: when a reader needs what a background flight has not
  fetched, an urgent one is sent after it. The first to fetch it wins.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import trio

from artifactfs.config import RepoSettings
from artifactfs.damage import DamageReport
from artifactfs.git.objects.database import ObjectDatabase
from artifactfs.git.pack.store import PackStore
from artifactfs.git.remote.remote import Remote
from artifactfs.hydration.background.background import Background
from artifactfs.hydration.background.sweep import SUBTREE_LIMIT
from artifactfs.hydration.background.upkeep import DEFAULT_CACHE_LIMIT, Upkeep
from artifactfs.hydration.demand.flight import FlightControl
from artifactfs.hydration.demand.lanes import Lanes
from artifactfs.hydration.demand.offered import OfferedBlobs
from artifactfs.hydration.demand.queue import WantQueue, fetch_in_order
from artifactfs.hydration.demand.want import STALLED_S, Want, patience_ends
from artifactfs.hydration.errors import HydrationError, HydrationFailed, HydrationTimeout, copy_of
from artifactfs.hydration.link.connection import RemoteLink
from artifactfs.hydration.link.health import Outage, RemoteHealth
from artifactfs.hydration.link.sizing import Sizing
from artifactfs.hydration.link.trace import FailureLog, FetchTrace
from artifactfs.hydration.local.blobs import Blob, Found, InPack, MemoryBlob, ReadContext
from artifactfs.hydration.local.cache import DEFAULT_MEMORY
from artifactfs.hydration.local.lookup import LocalBlobs
from artifactfs.hydration.local.stores import LocalStores
from artifactfs.hydration.order.inventory import TreeInventory
from artifactfs.hydration.order.nearby import TreeReader
from artifactfs.hydration.order.opening import opening_files
from artifactfs.hydration.order.priority import Priority
from artifactfs.hydration.order.readahead import Readahead
from artifactfs.hydration.stats import HydrationStats, WaitingReader
from artifactfs.paths import RepoLayout, StateLayout


@dataclass(frozen=True, slots=True)
class Parts:
    """What a hydrator is made of, as far as a test may have to reach in: to evict, to do at once
    what upkeep does in a minute, to make a disk full, or to wait for flights to land."""

    stores: LocalStores
    health: RemoteHealth
    control: FlightControl
    upkeep: Upkeep


SUBTREE_FILTER = f"blob:limit={SUBTREE_LIMIT}"
PROGRESS_S = 0.2
WALK_S = 60.0
"""The walk through a million files takes some 10 s of a busy machine."""

_LOOKS = 200
"""Blobs of a tree that are looked for: where none of them is here, nothing of it is."""

LATE_S = 2.0
"""A deadline that is noticed so late passed while this process was stopped, or starved: what the
remote has sent meanwhile was not read, so it begins anew."""


class Hydrator:
    """The contents of one mount. See the module's docstring for who may call what when."""

    def __init__(
        self,
        *,
        state: StateLayout,
        repo: RepoLayout,
        settings: RepoSettings,
        odb: ObjectDatabase,
        connect: Callable[[], Awaitable[Remote]],
        memory_bytes: int = DEFAULT_MEMORY,
        cache_limit: int = DEFAULT_CACHE_LIMIT,
        concurrency: int | None = None,
        damage: DamageReport | None = None,
    ) -> None:
        """Open the shared cache. Call it inside `trio.run`. Raises: OSError, sqlite3.Error."""
        self._settings = settings
        self._odb = odb
        self._complaints = FailureLog(settings.name)
        self.trace = FetchTrace()
        self._queue = WantQueue()
        damage = DamageReport(settings.name) if damage is None else damage
        self._stores = LocalStores.open(state, memory_bytes, damage)
        self._sizes = self._stores.sizes
        self._reads_here = self._reads_waited = 0
        self._health = RemoteHealth(
            repo=settings.name,
            deadline_s=settings.deadline_s,
            credentials=repo.credentials,
            probe=self._probe,
            on_down=self._remote_down,
            on_up=self._remote_up,
        )
        self._link = RemoteLink(connect, self._health)
        store = PackStore(state.shared_objects)
        self._upkeep = Upkeep(
            store=store,
            large=self._stores.large,
            sizes=self._sizes,
            odb=odb,
            cache_limit=cache_limit,
            damage=damage,
        )
        self._local = LocalBlobs(
            memory=self._stores.memory,
            large=self._stores.large,
            sizes=self._sizes,
            odb=odb,
            unpacked=self._upkeep.due,
        )
        self._control = FlightControl(
            queue=self._queue,
            link=self._link,
            store=store,
            local=self._local,
            arrived=self._arrived,
            arrived_many=self._arrived_many,
            make_room=self._upkeep.make_room,
            trace=self.trace,
            deadline_s=settings.deadline_s,
        )
        self.parts = Parts(self._stores, self._health, self._control, self._upkeep)
        self._sizing = Sizing(
            store=self._sizes,
            odb=odb,
            link=self._link,
            fetch=self._fetch_directory,
        )
        self.read_tree: TreeReader = odb.tree
        """Reads the trees of the mount. Others may keep what is read: see `Listings.read`."""
        self._background = Background(
            settings=settings,
            turns=state.cache / "sweeps",
            odb=odb,
            read_tree=lambda oid: self.read_tree(oid),
            link=self._link,
            sizing=self._sizing,
            size_of=self._sizes.get,
            missing=self._neither_here_nor_coming,
            wake=self._queue.wake,
        )
        self.attention = self._background.attention
        self._lanes = Lanes(
            queue=self._queue,
            control=self._control,
            health=self._health,
            sweep=self._background.sweep,
            trace=self.trace,
            landed=self._upkeep.due,
            swept=self._background.turn.release,
            concurrency=concurrency,
        )
        self.offered = OfferedBlobs(
            planner=self._background.planner,
            odb=odb,
            control=self._control,
            open_blob=self.open,
            prefetch=self.prefetch,
        )
        self._readahead = Readahead(
            tree=lambda oid: self.read_tree(oid),
            absent=self._absent,
            size_of=self._sizes.get,
            on_window=self._lanes.add_window,
        )

    async def run(self) -> None:
        """Own every background task, until cancelled; then close connections and databases."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._health.run)
                nursery.start_soon(self._lanes.run)
                nursery.start_soon(self._control.list_later)
                nursery.start_soon(self._upkeep.run, self._background.recount)
                nursery.start_soon(self._background.run)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 3):
                await self._link.aclose()
            self._sizes.close()

    # -- contents

    def find(self, oid: bytes) -> Found:
        """Whether `oid` is here, and where. Never waits; 2 µs to 1 ms.

        The answer is for `hydrate`, which goes on from there, unless it is the content itself.
        """
        found = self._local.find(oid)
        if found is not None:
            self._reads_here += 1
            self._readahead.used(oid)
        return found

    async def open(self, oid: bytes, context: ReadContext) -> Blob:
        """The content of `oid`, wherever it is: `find`, then `hydrate`."""
        found = self.find(oid)
        if found is None or isinstance(found, InPack):
            return await self.hydrate(oid, context, found)
        return found

    async def open_here(self, oid: bytes) -> Blob | None:
        """The content of `oid` where it is here. Waits for the disk. Raises: HydrationFailed."""
        return await self._local.open(oid, self._local.find(oid))

    async def hydrate(self, oid: bytes, context: ReadContext, found: InPack | None = None) -> Blob:
        """The content of `oid`, of which `find` has said that it is in a pack, or absent.

        Waits for the network, at most the repository's deadline. It begins anew whenever bytes of
        a request for `oid` have come: a large file takes the time it takes.

        Any number of readers share a request. Cancellation leaves the request to go on. Raises:
        HydrationTimeout, HydrationFailed; each failure is one line in the log.
        """
        deadline_s = self._settings.deadline_s
        ends = trio.current_time() + deadline_s
        try:
            while ends > trio.current_time():
                with trio.move_on_at(ends):
                    return await self._hydrate(oid, context, found)
                found = None
                late_s = trio.current_time() - ends
                began = trio.current_time() if late_s > LATE_S else self._control.moved(oid)
                ends = began + deadline_s
            want = self._queue.get(oid)
            trouble = f": {want.trouble}" if want is not None and want.trouble else ""
            raise HydrationTimeout(f"not here after {deadline_s:g} s{trouble}")
        except HydrationError as error:
            self._complaints.add(context.path, error)
            raise

    async def _hydrate(self, oid: bytes, context: ReadContext, found: Found) -> Blob:
        while True:
            blob = await self._local.open(oid, found)
            if blob is not None:
                return blob
            flight = self._control.flight_with(oid)
            if flight is not None:
                with trio.move_on_after(STALLED_S):
                    await flight.landed.wait()
                blob = await self.open_here(oid)
                if blob is not None:
                    return blob
            self._background.sweep.note_read()
            await self._health.admit()
            want = await self._read(oid, context)
            if want.error is not None:
                raise copy_of(want.error)
            if want.data is not None:
                return MemoryBlob(want.data)
            found = self._local.find(oid)

    async def _read(self, oid: bytes, context: ReadContext) -> Want:
        """Wait until somebody has finished the want of `oid`, with the reader counted in."""
        self._reads_waited += 1
        known = self._queue.get(oid)
        want = self._queue.join(
            oid,
            Priority.EXPLICIT,
            path=context.path,
            pid=context.pid,
            size=self._sizes.get(oid),
        )
        if known is None:
            want.companions = self._readahead.missed(oid, context.path, context.trees, context.pid)
        else:
            self._readahead.used(oid)
        want.readers += 1
        want.takers += 1
        try:
            await self._wait_for(want)
        finally:
            want.readers -= 1
            want.takers -= 1
        return want

    async def _wait_for(self, want: Want) -> None:
        """Wait for `want`; send an urgent request after a background one that takes long."""
        joined = trio.current_time()
        while not want.finished:
            with trio.move_on_at(patience_ends(want, joined)):
                await want.done.wait()
            if not want.finished and trio.current_time() >= patience_ends(want, joined):
                self._queue.push(want)

    async def prefetch(
        self, oids: Iterable[bytes], *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Fetch all of `oids`; `progress(done, total)` is called as they come.

        Waits for the network without an overall deadline; each blob has the usual retries.
        Raises: HydrationFailed when some could not be fetched, after trying all.
        """
        wanted = list(dict.fromkeys(oids))
        absent = self._odb.missing(wanted)
        done = len(wanted) - len(absent)
        failed: list[Exception] = []
        if progress is not None:
            progress(done, len(wanted))
        join = partial(self._join_all, priority=Priority.PREFETCH)
        async with aclosing(fetch_in_order(absent, join=join, admit=self._health.admit)) as wants:
            async for want in wants:
                done += want.error is None
                failed += [want.error] if want.error is not None else []
                if progress is not None:
                    progress(done, len(wanted))
        if failed:
            raise HydrationFailed(f"{len(failed)} of {len(wanted)} could not be had: {failed[0]}")

    async def prefetch_tree(
        self, tree: bytes, *, progress: Callable[[int, int], None] | None = None
    ) -> int | None:
        """Fetch every blob below `tree`, the mounted one, and return how many files it has; None
        where that is not known yet, and nothing was fetched.

        Where most of many is not here, whole trees are asked for, which the remote sends as they
        are in its packs; what is left then, by name. Waits and raises as `prefetch`.
        """
        with trio.move_on_after(WALK_S):
            while not self.offered.is_walked:
                await self.offered.walked()
        inventory = self._background.inventory
        if inventory is None or inventory.tree != tree or not self.offered.is_walked:
            return None
        if inventory.here or len(self._odb.missing(some := inventory.sample(_LOOKS))) < len(some):
            await self._background.recount()  # else nothing is here, as it was
        total = inventory.total
        trees = self._background.sweep.trees_of(inventory)
        flights = self._lanes.add_trees(trees, SUBTREE_FILTER)
        try:
            for flight in flights:
                while not flight.landed.is_set():
                    if progress is not None:
                        received = sum(flight.objects for flight in flights)
                        progress(min(inventory.here + received, total), total)
                    with trio.move_on_after(PROGRESS_S):
                        await flight.landed.wait()
        finally:
            self._lanes.drop_trees()
        if flights:
            await self._background.recount()

        def note(done: int, wanted: int) -> None:
            if progress is not None:
                progress(total - wanted + done, total)

        await self.prefetch(inventory.absent(), progress=note)
        return inventory.directories.blobs[0]

    async def fetch_git_files(self) -> None:
        """Fetch what git reads at every command, whatever the reach of the sweep, into packs.

        Does nothing while the tree of `start_sweep` was not walked. Waits and raises as `prefetch`.
        """
        inventory = self._background.inventory
        oids = inventory.of_priority(Priority.GIT) if inventory is not None else []
        await self.offered.fetch_all(oids)

    def _join_all(self, oids: Iterable[bytes], priority: Priority) -> list[Want]:
        """Wants for all of `oids`, each with one reader more."""
        wants = [self._queue.join(oid, priority, size=self._sizes.get(oid)) for oid in oids]
        for want in wants:
            want.readers += 1
        return wants

    # -- sizes

    @property
    def sizes_are_told(self) -> bool:
        """Whether the remote tells sizes without contents, as far as it was asked yet."""
        remote = self._link.remote
        return remote is None or remote.capabilities.object_info

    def known_size(self, oid: bytes) -> int | None:
        """The size of a blob if it can be told now. Never waits."""
        return self._sizing.known(oid)

    def known_sizes(self, oids: Sequence[bytes]) -> dict[bytes, int]:
        """Those of `oids`, a directory that is listed, whose size can be told now. Never waits."""
        if oids:
            self.attention.note_listing(oids[0])
        inventory = self._background.inventory
        sizes = {} if inventory is None else inventory.sizes_of(oids)
        if len(sizes) < len(oids):
            sizes |= self._sizing.known_many([oid for oid in oids if oid not in sizes])
        if not self.sizes_are_told:
            for oid in sizes:  # a size that only a download could tell was a use of it
                self._readahead.used(oid)
        return sizes

    async def sizes(self, tree: bytes, oids: Sequence[bytes]) -> dict[bytes, int]:
        """The sizes of all `oids`, blobs of the directory `tree`; waits for the network.

        At most the repository's deadline. Raises: HydrationTimeout, HydrationFailed.
        """
        deadline_s = self._settings.deadline_s
        try:
            with trio.move_on_after(deadline_s):
                return await self._sizing.directory(tree, oids)
            raise HydrationTimeout(f"sizes not known after {deadline_s:g} s")
        except HydrationError as error:
            self._complaints.add(b"(sizes of a directory)", error)
            raise

    async def learn_sizes(self, oids: Sequence[bytes]) -> None:
        """Learn what the remote tells of any blobs, in the background. Raises nothing."""
        await self._sizing.in_background(oids)

    async def _fetch_directory(self, tree: bytes, oids: list[bytes]) -> None:
        """Hydrate `oids`, the files of a directory, in one request, and read on from there."""
        absent = self._odb.missing(oids)
        if not absent:
            return
        await self._health.admit()
        wants = self._join_all(absent, Priority.EXPLICIT)
        chain = (
            self._background.inventory.chain(tree)
            if self._background.inventory is not None
            else (tree,)
        )
        self._readahead.missed(absent[0], b"", chain, 0)
        self._readahead.note_endings(tree, set(absent))
        try:
            for want in wants:
                await self._wait_for(want)
        finally:
            for want in wants:
                want.readers -= 1
        error = next((want.error for want in wants if want.error is not None), None)
        if error is not None:
            raise copy_of(error)

    # -- the background

    def fetch_first(self, tree: bytes) -> None:
        """Ask for what is read first in `tree`, which was just cloned; done by `run`."""
        self._lanes.add_window(opening_files(self._odb.tree, tree, self._absent))

    def start_sweep(self, tree: bytes) -> None:
        """The tree that the background works on from now on: its sizes, then its contents."""
        self._background.planner.start(tree)

    async def give_way(self, seconds: float) -> None:
        """Wait, at most so long, while requests are on that somebody asked for, or while somebody
        works in the mount."""
        with trio.move_on_after(seconds):
            await self._control.give_way(seconds)
            await self.attention.pause(seconds)

    def start_recent(self, commit: bytes) -> None:
        """Fetch, after the sweep, what recent commits up to `commit` changed; history is here."""
        self._background.recent.start(commit)

    def reset_remote(self) -> None:
        """The remote's URL or credentials are new: connect again at the next request."""
        self._link.reset()
        self._health.reset()
        self._queue.wake()

    def set_cache_limit(self, limit: int | None) -> None:
        """Bytes that the shared cache may have from now on; None: the default."""
        self._upkeep.cache_limit = DEFAULT_CACHE_LIMIT if limit is None else limit
        self._upkeep.due()

    async def evict(self, max_bytes: int) -> int:
        """Shrink the shared cache to `max_bytes`; returns the bytes freed. Raises: OSError."""
        freed = await self._upkeep.evict(max_bytes)
        await self._background.recount()
        return freed

    def stats(self) -> HydrationStats:
        """A snapshot of everything that `status` and `top` show."""
        inventory = self._background.inventory or TreeInventory(b"")
        counters = self._control.counters
        outage = self._health.outage
        remote = self._link.remote
        sweep = self._background.sweep.progress()
        now = trio.current_time()
        readers = tuple(
            WaitingReader(os.fsdecode(want.path), want.pid, now - want.created)
            for want in self._queue
            if want.readers and want.priority is Priority.EXPLICIT
        )
        state = "down" if outage is not None else "up" if remote is not None else "unused"
        return HydrationStats(
            blobs_here=inventory.here,
            blobs_total=inventory.total,
            bytes_here=inventory.here_bytes,
            bytes_total=inventory.total_bytes,
            sizes_known=inventory.sizes_known,
            queue={p.name.lower(): n for p, n in self._queue.lengths().items() if n},
            in_flight=len(self._control.active),
            requests=self._link.requests,
            requests_by_reason=dict(counters.by_reason),
            failures=counters.failures,
            blobs_received=counters.blobs,
            received_bytes=counters.bytes,
            reads_here=self._reads_here,
            reads_waited=self._reads_waited,
            readers=readers,
            remote=state,
            outage_since=outage.since if outage is not None else None,
            outage_kind=outage.kind if outage is not None else "",
            outage_cause=outage.cause if outage is not None else "",
            limits=remote.capabilities.limits if remote is not None else (),
            sweep_state=sweep.state,
            sweep_stage=sweep.stage,
            recent_state=self._background.sweep.recent_state,
            memory_bytes=self._stores.memory.used_bytes,
        )

    # -- called by the parts

    def _arrived(self, oid: bytes, size: int) -> None:
        if self._background.inventory is not None:
            self._background.inventory.note_here(oid, size)

    def _arrived_many(self, blobs: Sequence[tuple[bytes, int]]) -> list[tuple[bytes, int, int]]:
        """As `_arrived` for many, sorted by oid; see `TreeInventory.note_many_here`."""
        inventory = self._background.inventory
        if inventory is None:
            return [(oid, size, -1) for oid, size in blobs]
        return inventory.note_many_here(blobs)

    def _absent(self, oid: bytes) -> bool:
        """Whether readahead should fetch `oid`: it is not here, not coming, and to be had."""
        return (
            self._queue.get(oid) is None
            and self._stores.memory.get(oid) is None
            and oid not in self._control.lacking
            and not self._odb.contains(oid, look_again=False)
            and self._control.flight_with(oid) is None
        )

    def _neither_here_nor_coming(self, oids: list[bytes]) -> list[bytes]:
        lacking = self._control.lacking
        return [
            oid
            for oid in self._odb.missing(oids)
            if oid not in lacking and self._queue.get(oid) is None
        ]

    async def _probe(self) -> None:
        await (await self._link.get()).ls_refs(("HEAD",))

    def _remote_down(self, outage: Outage) -> None:
        self._background.remote_down()
        self._lanes.drop_windows()
        self._lanes.drop_trees()
        for want in list(self._queue):
            self._queue.finish(want, error=self._health.failure())

    def _remote_up(self) -> None:
        self._background.remote_up()
        self._queue.wake()
