"""The REST interface; ``base`` checks the token of each request."""
