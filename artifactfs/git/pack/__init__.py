"""Packs: their format, reading and writing them, never past what they may hold, and the shared
store of hydrated objects."""
