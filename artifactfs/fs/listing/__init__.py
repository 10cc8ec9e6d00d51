"""What the kernel is told of a whole directory: on demand, in several parts, or ahead of a walk."""
