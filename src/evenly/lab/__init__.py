"""Experiments: an application built on the library through its public names."""
