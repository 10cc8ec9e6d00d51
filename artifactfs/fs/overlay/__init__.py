"""Where a write is kept: the log of changes, the database, upper files and small files."""
