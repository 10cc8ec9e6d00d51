"""Packs: their format, reading and writing them, and the shared store of hydrated objects."""
