"""What git writes into a working tree: attributes, line ends, encodings, filter drivers."""
