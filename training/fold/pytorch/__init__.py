"""The PyTorch front end: the exported graph, its norms, the placement, the new weights and their proof."""
