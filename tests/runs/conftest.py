"""No test here waits for the disk: what survives a power failure shows in the order of the calls alone."""

import os

import pytest


@pytest.fixture(autouse=True)
def disk_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fsync free of cost."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
