"""The schema of ``overlay.db`` and its migrations.

`PRAGMA user_version` is the number of migrations that were applied. A migration is never changed
once released; a new one is appended.
"""

from __future__ import annotations

APPLICATION_ID = 0x41465331  # "AFS1": tells our databases from others

PAGE_SIZE = 2048
"""Half of what a transaction writes to the WAL with 4096, at the same speed."""

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

    -- Every inode that differs from what the base tree says, or that must keep a number.
    CREATE TABLE inodes (
        ino INTEGER PRIMARY KEY,
        mode INTEGER NOT NULL,
        uid INTEGER NOT NULL,
        gid INTEGER NOT NULL,
        nlink INTEGER NOT NULL,      -- directories: 1
        rdev INTEGER NOT NULL,
        atime_ns INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        ctime_ns INTEGER NOT NULL,
        oid BLOB,                    -- content is that blob; of a directory: its base tree
        has_data INTEGER NOT NULL,   -- content is ours: upper/XX/INO, if no segment is named
        target BLOB,                 -- of a symlink that is not a blob
        base_time_ns INTEGER NOT NULL -- of a directory: time of everything clean in it
    );

    -- Every row above is reached from the root by these. 0: a name of the base that was removed.
    CREATE TABLE dirents (
        parent INTEGER NOT NULL,
        name BLOB NOT NULL,
        ino INTEGER NOT NULL,
        PRIMARY KEY (parent, name)
    ) WITHOUT ROWID;
    CREATE INDEX dirents_by_ino ON dirents (ino) WHERE ino != 0;

    CREATE TABLE xattrs (
        ino INTEGER NOT NULL,
        name BLOB NOT NULL,
        value BLOB NOT NULL,
        PRIMARY KEY (ino, name)
    ) WITHOUT ROWID;
    """,
    """
    -- There may be a log of changes beside the database (commitlog.py): a program that does not
    -- know of it must not open this.
    INSERT INTO meta VALUES ('sequence', 0);
    """,
    """
    -- Where a row with data names a segment, its content is there, and not an upper file.
    ALTER TABLE inodes ADD COLUMN segment INTEGER;
    ALTER TABLE inodes ADD COLUMN segment_offset INTEGER;
    ALTER TABLE inodes ADD COLUMN segment_size INTEGER;
    """,
    """
    -- CRC-32 of the content in the segment; NULL where it was written before there was one.
    ALTER TABLE inodes ADD COLUMN segment_crc INTEGER;
    """,
    """
    -- The key of derived inode numbers. What exists keeps its numbers, which had none; a new
    -- overlay gets one as it is made.
    INSERT OR IGNORE INTO meta VALUES ('ino_secret', x'');
    """,
)
