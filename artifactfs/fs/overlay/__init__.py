"""Where a write is kept, and why it survives SIGKILL: the log of changes, the database, upper files
and small files."""
