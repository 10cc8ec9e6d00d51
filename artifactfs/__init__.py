"""ArtifactFS: mount Git repositories whose contents arrive when they are read."""

__version__ = "0.1.0"
