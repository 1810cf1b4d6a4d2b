"""How much memory the cache takes, and what its contents depend on."""

import torch
import xxhash

from pelagos.cache.layout import CacheLayout
from pelagos.common.device import describe_machine
from pelagos.common.errors import ResourceError
from pelagos.engine.config import EngineConfig
from pelagos.model.transformer import Model

_SHARE = 4  # of the memory that is free: one part in this many
_FALLBACK_BYTES = 1 << 30  # where the machine does not say what is free


def cache_bytes(config: EngineConfig, layout: CacheLayout) -> int:
    """Bytes for pages and restart points. Raises ResourceError if they are less than one sequence needs."""
    free = describe_machine().memory.available
    num_bytes = config.cache_bytes or (free // _SHARE if free else _FALLBACK_BYTES)
    needed = 4 * (layout.page_bytes + layout.boundary_bytes)
    if num_bytes < needed:
        raise ResourceError(f"the cache must have at least {needed} bytes for this model, got {num_bytes}")
    if config.cache_bytes and free and config.cache_bytes > free:
        raise ResourceError(
            f"a cache of {config.cache_bytes} bytes does not fit the {free} bytes of memory that are free"
        )
    return num_bytes


def fingerprint(model: Model) -> bytes:
    """What rows depend on beside tokens: the config, and weights as far as a few of them tell."""
    digest = xxhash.xxh3_128(repr(model.config).encode())
    for weight in (model.norm.weight, model.embed.weight[:64], model.hc_head.fn):
        digest.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
