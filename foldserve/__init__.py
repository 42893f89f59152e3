"""Train a BatchNorm network, fold it exactly, export it with its proof, and serve it truthfully."""
