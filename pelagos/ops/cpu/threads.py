"""How many CPU threads compute: one number for torch's operations and for the native kernels.

Each of the two has a pool of threads of its own, and only one of them works at a time.
"""

import torch

from pelagos.common import env
from pelagos.common.errors import UsageError
from pelagos.ops.cpu.module import native


def set_num_threads(num_threads: int) -> None:
    """Let torch and the native kernels run on this many threads, from the next operation on.

    What the native kernels return does not depend on it. Not while another Python thread computes. Raises UsageError
    for a number that is not from 1 to ``env.MAX_THREADS``.
    """
    if not 1 <= num_threads <= env.MAX_THREADS:
        raise UsageError(f"num_threads must be from 1 to {env.MAX_THREADS}, got {num_threads}")
    torch.set_num_threads(num_threads)
    module = native()
    if module is not None:
        module.set_num_threads(num_threads)
