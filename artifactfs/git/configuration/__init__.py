"""What git is configured to do for a remote, and whether our own transport can do it."""
