"""What several test files start from."""

import pytest


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server of small data sets, with nothing in the cache."""
    from served import serving

    with serving(tmp_path, monkeypatch) as running:
        yield running
