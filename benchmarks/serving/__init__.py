"""The service beside its peers, under overload, while versions change, and where its microseconds go."""
