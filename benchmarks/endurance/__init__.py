"""The promises that only time and bad luck can test."""
