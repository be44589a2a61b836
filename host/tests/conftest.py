# SPDX-License-Identifier: Apache-2.0
"""What holds for all unit tests."""

import signal

import pytest

# A shell gives its background jobs an ignored SIGINT, and programs started by the tests would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def one_thread():
    """torch with one thread: small matrices are no faster with more, and shared machines much slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
