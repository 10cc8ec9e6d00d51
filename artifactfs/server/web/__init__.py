"""The web page, rendered on the server."""
