"""Experiments, an application built on the library through its public names.

- `run`: one run, from its settings to its result.
- `many`: many runs: comparisons, searches, studies, and what carries them.
- `statistics`: what is computed of finished runs.
- `trained`: what a trained run is good for: predictions and export.
"""
