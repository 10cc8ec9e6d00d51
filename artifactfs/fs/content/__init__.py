"""Contents of files: reading, copy-up, writing, and what checkout converts."""
