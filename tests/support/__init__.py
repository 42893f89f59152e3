"""What several tests and benchmarks share: made-up models, real servers, tables of bad requests and of networks."""
