"""What all tests of every method have in common."""

import pytest


@pytest.fixture(autouse=True)
def few_clusterings(monkeypatch):
    """A stable gap of a few rows has many, which change nothing that is tested here."""
    monkeypatch.setattr("evenly.diagnosis.gap.HALVINGS", (2, 2))
