"""The mount: inode tree, overlay and the kernel's requests.

``operations`` (pyfuse3) → ``tree`` (finding inodes), ``mutations`` (names and attributes),
``contents`` (data) → ``overlay`` (SQLite) and ``upper`` (data files) → reply. ``filesystem`` puts
them together, ``session`` mounts.

The concurrency protocol
------------------------
One trio task for each request, all in one thread; so whatever has no await in it is atomic.

* **Finding and changing** (`tree`, `mutations`, `changes`, `switch`) never await. A change is
  planned, committed to SQLite and taken over into memory in one go.
* **Contents** await in three places: for a blob that is not here, for a large copy in a thread, for
  fsync. After each of them anything may have changed: the inode may have been unlinked, written
  by another program, truncated, or got another blob by a switch. So what was read before is
  looked at again: `Contents.read` checks for data of its own, `_copy_up` compares the oid.
  One copy-up of an inode runs at a time; others wait for it and look again.
* **An inode stays in memory** while the kernel refers to it (as it does while it is open: the
  kernel opens files by itself), a task of ours has pinned it, or a child of it is in memory.
  `Tree.drop_if_unused` is the only place that removes one. Who looks an inode up without giving
  the kernel a reference calls it afterwards, and pins the inode to hold on to it over an await.
  Of a clean file that only the kernel refers to, its references are kept and no object
  (`CompactFiles`): the same object comes back only while somebody holds it. Who keeps a number
  over an await looks it up again.
* **Threads** run fsync, checkpoints (on a connection of their own), hashing, directory scans and
  copies into files that nobody else has. None touches an inode.
* **Cancellation** ends waits only. A request that was cancelled in a wait has changed nothing.
* **Notifications to the kernel** can wait for a request that waits for us. From the event loop only
  attribute-only invalidation is called; names and listings are invalidated in a thread, and who
  has switched the tree waits for it (`stale`).
"""

from artifactfs.fs.kernel import extension

extension.load()  # before anything of this package imports pyfuse3
