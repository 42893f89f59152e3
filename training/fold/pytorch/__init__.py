"""The PyTorch front end: the exported graph, its norms, the plan, the new weights and their proof."""
