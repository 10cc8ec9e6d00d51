"""Bringing blobs here in the order in which they are needed."""
