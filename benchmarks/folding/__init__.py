"""The folding scoreboard: many small models through this fold and other tools, and what a fold costs."""
