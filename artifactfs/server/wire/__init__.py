"""Git's wire formats as the server reads and writes them. No I/O."""
