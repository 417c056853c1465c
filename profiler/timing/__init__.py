"""What times mean: numpy only, no agents, threads, clocks or files.

`docs/measurement.md` has what is estimated, `docs/design/measurement.md` why so.
"""
