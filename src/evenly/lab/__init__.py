"""Experiments, an application built on the library through its public names.

- `run`: one run, from its settings to its result.
- `many`: many runs: comparisons, searches, studies, and the pools that carry them out.
- `statistics`: what is computed from finished runs.
- `trained`: uses of a trained run: predictions and export.
"""
