"""A small backbone, and a budget, for tests of commands that build spaces."""

BACKBONE = """
classes = 10
split = 1
exploring_layers = 1
[input]
channels = 1
height = 8
width = 8
[[stem]]
channels = 8
kernel = 3
stride = 1
[[stages]]
channels = 16
repeats = 2
stride = 2
[[stages]]
channels = 32
repeats = 2
stride = 2
[head]
channels = 32
"""
BUDGET = "0.36"
