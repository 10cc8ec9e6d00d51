"""Supervisor, mount workers and the control protocol between them."""
