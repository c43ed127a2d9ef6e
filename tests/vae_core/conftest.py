"""What keeps these tests quick and true on a busy machine."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("latentbits", deadline=None)
settings.load_profile("latentbits")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from a second thread, and waiting for one that others keep busy takes minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
