"""The fast lane: usual requests from a connection to the batcher and back, past the framework."""
