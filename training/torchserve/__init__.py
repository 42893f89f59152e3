"""TorchServe's archives, taken over without running what they hold."""
