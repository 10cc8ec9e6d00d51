"""The remote as readers see it: its connection, its health, its sizes, and what was asked."""
