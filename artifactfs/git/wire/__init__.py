"""The wire: URLs, credentials, pkt-lines, protocol version 2 and our own HTTP below it."""
