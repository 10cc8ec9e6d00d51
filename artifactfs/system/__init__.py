"""What is asked of the operating system: files that appear whole, locks, mounts and processes.

A leaf: imports only errors, and every floor may import it.
"""
