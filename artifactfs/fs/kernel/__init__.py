"""What FUSE, libfuse and the kernel ask of us besides the requests themselves."""
