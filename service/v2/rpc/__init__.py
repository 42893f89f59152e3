"""The protocol over gRPC: the same registry, the same checks, the same sentences; switched on by a port.

Needs the extra `grpc`; the rest of the service never imports this package unless that port is set.
"""
