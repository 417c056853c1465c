"""Names of ways to train, apart from `training`, so that commands need no torch."""

SUPERNET_TRAININGS = ("single-path", "fair", "sandwich")
PRECISIONS = ("fp32", "bf16")
AUTO = "auto"
"""Leaves a precision to the device."""
