"""Where a result comes from."""

from __future__ import annotations

import pytest

from recipes.training import provenance


def test_the_revision_stays_that_of_the_start(monkeypatch):
    """An export after days names the code that runs, not what was committed meanwhile."""
    before = provenance.git_revision()
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert provenance.git_revision() == before
