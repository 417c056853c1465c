"""The ways to train a supernet, by name; apart from `training`, so that commands need no torch."""

SUPERNET_TRAININGS = ("single-path", "fair", "sandwich")
