"""Inodes in memory, the base trees that they are made of, and how the kernel is told of them."""
