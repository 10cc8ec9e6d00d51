"""What is fetched while nobody waits, and what keeps the cache in order."""
