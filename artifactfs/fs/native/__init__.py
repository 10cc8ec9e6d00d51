"""What the kernel's overlayfs has written: its upper folder, read without a mount."""
