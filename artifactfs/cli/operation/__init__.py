"""Commands for running the daemon and seeing what it does."""
