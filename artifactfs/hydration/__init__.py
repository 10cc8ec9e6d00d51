"""Fetching blobs in the order in which they are needed."""
