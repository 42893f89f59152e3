"""The page for people at `/`, and the routes that it gets its facts from."""
