"""Commands for one repository: add it, mount it, change its remote, switch it."""
