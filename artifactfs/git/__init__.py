"""Git on the wire and on disk: protocol v2, packs, objects, the index."""
