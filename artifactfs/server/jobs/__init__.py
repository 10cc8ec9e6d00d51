"""What takes time: creating, forking, importing and deleting repositories."""
