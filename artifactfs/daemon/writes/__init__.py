"""Who takes what programs write, a mount of ours or the kernel's overlayfs, and moving between."""
