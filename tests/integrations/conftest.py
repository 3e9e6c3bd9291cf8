import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """The toy is too small for threads to pay, and tests beside this one want them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
