"""What somebody waits for: the queue of wanted blobs, the requests that carry them, and the bounds
on what a remote may send for one, whatever it says of its size."""
