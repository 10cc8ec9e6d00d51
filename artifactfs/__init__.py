"""ArtifactFS: mount Git repositories whose contents arrive when they are read."""
