"""What can be wrong with a version folder, before either half puts it into its own words."""


class FormatError(Exception):
    """A file, a manifest or the graph's metadata is not in the format that both halves agree on."""


class GoldenError(Exception):
    """A model does not give its golden answers."""
