"""The C library's memory: that what tensors leave goes back to the system, and does not stay with the process."""

import contextlib
import ctypes

_MMAP_THRESHOLD = -3  # mallopt's M_MMAP_THRESHOLD
_LARGE = 1 << 20


def give_back_what_is_freed() -> None:
    """Have the C library give large blocks back at once, for as long as the process lives.

    glibc keeps the next ones for itself once a large one was freed, and memory would grow with the number of tensors,
    from run to run by another amount.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library, which has no such call
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
