"""``artifact-fs switch``: another commit in the mount, finished also after a crash."""
