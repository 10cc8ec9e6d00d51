"""What is in a repository: read, compared, and changed without a working tree."""
