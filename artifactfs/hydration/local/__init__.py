"""What is here already: blobs in memory, in files and in packs, and the sizes of all."""
