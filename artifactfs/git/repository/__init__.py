"""A gitdir on the disk: made, read, kept small and moved."""
