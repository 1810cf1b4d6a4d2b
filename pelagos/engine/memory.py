"""The cache of an engine: which kind a model needs, how much memory it takes, what its contents depend on."""

import torch
import xxhash

from pelagos.cache.layout import CacheLayout
from pelagos.cache.manager import Cache, PagedCache
from pelagos.cache.plain import PlainCache
from pelagos.common.device import describe_machine
from pelagos.common.errors import ResourceError
from pelagos.engine.config import EngineConfig
from pelagos.model.transformer import Model

_SHARE = 4  # of the memory that is free: one part in this many
_FALLBACK_BYTES = 1 << 30  # where the machine does not say what is free


def make_cache(model: Model, config: EngineConfig) -> Cache:
    """Pages for the native forward pass, whole states for the reference ops. Raises ResourceError if the memory is less
    than one sequence needs, or not there."""
    if model.native is None:
        return PlainCache(model, _num_bytes(config, 0))
    layout = CacheLayout.of(model.native.layout, model.native.draft_layout)
    num_bytes = _num_bytes(config, 4 * (layout.page_bytes + layout.boundary_bytes))
    return PagedCache(layout, num_bytes, fingerprint(model))


def _num_bytes(config: EngineConfig, needed: int) -> int:
    free = describe_machine().memory.available
    num_bytes = config.cache_bytes or (free // _SHARE if free else _FALLBACK_BYTES)
    if num_bytes < needed:
        raise ResourceError(f"the cache must have at least {needed} bytes for this model, got {num_bytes}")
    if config.cache_bytes and free and config.cache_bytes > free:
        raise ResourceError(f"a cache of {num_bytes} bytes does not fit the {free} bytes of memory that are free")
    return num_bytes


def fingerprint(model: Model) -> bytes:
    """What rows depend on beside tokens: the config, and weights as far as a few of them tell."""
    digest = xxhash.xxh3_128(repr(model.config).encode())
    for weight in (model.norm.weight, model.embed.weight[:64], model.hc_head.fn):
        digest.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
