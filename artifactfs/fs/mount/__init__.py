"""One mount: its parts put together, its requests and its life."""
