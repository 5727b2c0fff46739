"""Replace fsync in these tests. The tests check the order of the calls, which does not need a real flush."""

import os

import pytest


@pytest.fixture(autouse=True)
def disk_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make fsync do nothing."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
