"""What somebody waits for: the queue of wanted blobs and the requests that carry them."""
