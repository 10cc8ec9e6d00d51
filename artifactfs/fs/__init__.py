"""The mount: inode tree, overlay and the kernel's requests."""
