"""From data to a proved model file: dataset -> model -> fit -> fold -> export -> verify -> artifact."""
