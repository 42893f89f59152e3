"""From a socket to requests in HTTP: limits, deadlines, framing. Knows no route and no model."""
