"""From a model file to answers: repository -> engine -> batcher -> HTTP. Imports neither training nor torch."""
