"""Examines a machine and a state root, and names each fault with the command that mends it."""
