"""Repositories that are registered: adding, removing, their remotes, what is lost with them."""
