"""The fast lane of gRPC: usual calls from their frames to the batcher and back, with no library between.

Needs the extra `grpc` like `v2.rpc`, behind whose gate it stands; the rest of the service never imports this package
unless that port is set.
"""
