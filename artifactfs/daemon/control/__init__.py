"""The control protocol: messages, both of its ends, and the channel to a worker."""
