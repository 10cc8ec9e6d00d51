"""The web page, rendered on the server.

`sessions` checks the token at login and at each request.
"""
