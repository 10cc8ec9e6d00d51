"""What takes time: creating, forking, importing, syncing and deleting repositories."""
