"""What is in a repository: read, compared, merged and changed without a working tree."""
