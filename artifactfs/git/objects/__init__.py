"""Commits, trees and blobs that are here, read without git and without the network."""
