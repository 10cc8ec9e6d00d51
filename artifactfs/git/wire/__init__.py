"""The wire: URLs, credentials, pkt-lines, protocol version 2 and the transports below it."""
