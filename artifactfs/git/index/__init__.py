"""The primed index: written by us, so that the first `git status` finds everything in order."""
