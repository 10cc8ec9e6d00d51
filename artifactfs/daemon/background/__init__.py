"""What a worker does behind a mount: history, sizes, the index, fetches, following a branch."""
