"""Kernel writes (``--writes kernel``): what the kernel's overlayfs has written, read from its upper
folder without a mount."""
