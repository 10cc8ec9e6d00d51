"""A mount's process: what it serves, answers and does in the background."""
