"""From a socket to the batcher: guarded connections, and the fast lane past the framework."""
