"""Transports that are byte streams: a local process, ssh, git:// and `git remote-https`."""
