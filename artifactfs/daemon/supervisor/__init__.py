"""The daemon itself: it starts workers, watches them and answers the command line."""
