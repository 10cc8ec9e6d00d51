"""Commands for one task: run something in a workspace of its own, and keep its states."""
