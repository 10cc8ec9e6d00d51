"""The filesystem: inode tree, overlay and the FUSE operations over them."""
