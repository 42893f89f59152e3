"""From a model file to answers over HTTP: repository -> engine -> batcher -> HTTP. Imports neither training nor torch."""
