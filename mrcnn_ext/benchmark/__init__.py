"""Measurements beside the stock implementations, in one run on the same inputs."""
