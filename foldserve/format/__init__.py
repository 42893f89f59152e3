"""What training writes and the service reads: names, the manifest, golden answers, the graph's metadata.

Both halves import this package, and it imports neither; it needs NumPy and the standard library alone.
"""
