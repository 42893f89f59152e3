"""Fold BatchNorm and its relatives into neighbouring weights: exactly, with proof, or not at all and saying why."""
