"""A remote, and what is fetched from it: clone, history, refs, single commits."""
