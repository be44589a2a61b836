# SPDX-License-Identifier: Apache-2.0
"""What holds for all unit tests."""

import signal

# A shell gives its background jobs an ignored SIGINT, and programs started by the tests would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
