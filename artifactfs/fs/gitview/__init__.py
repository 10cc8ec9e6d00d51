"""What the mount shows to git alone: ``.git``, the objects it may have, and what has changed."""
