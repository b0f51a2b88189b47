"""What several test files start from."""

import pytest
import torch

from vqnotes import _interrupts


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A local server of small data sets, with nothing in the cache."""
    from served import serving

    with serving(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def ax():
    """The axes of a figure that is closed afterwards."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture(autouse=True)
def nothing_was_cut_off(monkeypatch):
    """Runs that another test has cut off are not this one's."""
    monkeypatch.setattr(_interrupts, "_cut_off", {})


@pytest.fixture(autouse=True)
def threads_as_before():
    """Threads that a test asks for are not the next one's: workers that share cores would wait for each other."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
