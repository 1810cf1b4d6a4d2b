"""The two rotations in config.json: of window layers, and of layers with compressed rows.

Three spellings. Official: ``rope_theta``, ``compress_rope_theta``, and ``rope_scaling`` for the YaRN of layers with
compressed rows. The same with a flat ``rope_parameters`` for ``rope_scaling``. Or ``rope_parameters`` with ``main`` and
``compress`` inside, a theta in each. Where several are there they must agree.
"""

import typing
from typing import Any

from pelagos.common.errors import ConfigError
from pelagos.model.config import ModelConfig, RopeConfig, YarnConfig
from pelagos.model.json_fields import JsonFields

_YARN_NAMES = {
    "factor": "factor",
    "original_positions": "original_max_position_embeddings",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}
_IGNORED_ROPE = frozenset({"partial_rotary_factor", "mscale", "mscale_all_dim"})
_ROPE_SCALING_EXAMPLE = '{"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536}'


def read_rotations(fields: JsonFields, compressed: bool) -> dict[str, RopeConfig]:
    """The fields of ModelConfig about rotation. ``compressed``: whether a layer has compressed rows.

    Empty where there is any problem, an earlier one included.
    """
    num_earlier_problems = len(fields.problems)
    main, compress, flat = None, None, fields.inner("rope_parameters", ignored=_IGNORED_ROPE)
    if flat is not None and ("main" in flat or "compress" in flat):
        main, compress, flat = (*(flat.inner(name, ignored=_IGNORED_ROPE) for name in ("main", "compress")), None)
    scaling = fields.inner("rope_scaling", ignored=_IGNORED_ROPE)
    yarn = None if main is None else _read_yarn(main)
    compressed_yarns = {_read_yarn(section) for section in (scaling, flat, compress) if section is not None}
    if len(fields.problems) == num_earlier_problems:
        if compressed and not compressed_yarns:
            fields.problem(
                f"rope_scaling is missing: layers with compressed rows need it, as in {_ROPE_SCALING_EXAMPLE}"
            )
        if len(compressed_yarns) > 1:
            fields.problem("rope_scaling and rope_parameters must say the same")
    theta = _read_theta(fields, "rope_theta", main or flat)
    needed = compressed or compress is not None or fields.has("compress_rope_theta")
    compressed_theta = _read_theta(fields, "compress_rope_theta", compress) if needed else theta
    if fields.problems or theta is None or compressed_theta is None:
        return {}
    return {
        "rope": RopeConfig(theta=theta, yarn=yarn),
        "compressed_rope": RopeConfig(theta=compressed_theta, yarn=next(iter(compressed_yarns), None)),
    }


def _read_theta(fields: JsonFields, name: str, inner: JsonFields | None) -> float | None:
    """The base of a rotation, at the top under ``name`` or as ``rope_theta`` of an inner object, or both if equal."""
    sources = [(fields, name)] if inner is None or fields.has(name) else []
    if inner is not None and (not sources or inner.has("rope_theta")):
        sources.append((inner, "rope_theta"))
    thetas = [source.read(key, RopeConfig, "theta") for source, key in sources]
    if len({*thetas} - {None}) > 1:
        fields.problem(f"{name} must be what rope_parameters says ({thetas[1]:g}), got {thetas[0]:g}")
    return typing.cast(float | None, thetas[0])


def _read_yarn(section: JsonFields) -> YarnConfig | None:
    spellings = [name for name in ("rope_type", "type") if section.has(name)] or ["rope_type"]
    kinds = [section.choice(name, ("yarn", "default"), required=True) for name in spellings]
    if kinds != ["yarn"] * len(kinds):
        if len({*kinds}) > 1:
            section.problem("type must be the same as rope_type")
        return None
    section.fixed("attention_factor", 1.0)
    section.fixed("truncate", True)
    values = {field: section.read(name, YarnConfig, field) for field, name in _YARN_NAMES.items()}
    if None in values.values():
        return None
    try:
        return YarnConfig(**values)
    except ConfigError as error:
        section.problem(str(error))
        return None


def rotations_to_json(config: ModelConfig) -> dict[str, Any]:
    """The official spelling; the nested one where window layers have YaRN, which the official one cannot say."""
    compress = _yarn_to_json(config.compressed_rope.yarn)
    if config.rope.yarn is None:
        return {
            "rope_theta": config.rope.theta,
            "compress_rope_theta": config.compressed_rope.theta,
            "rope_scaling": {"type": compress.pop("rope_type"), **compress},
        }
    return {
        "rope_parameters": {
            "main": {"rope_theta": config.rope.theta, **_yarn_to_json(config.rope.yarn)},
            "compress": {"rope_theta": config.compressed_rope.theta, **compress},
        }
    }


def _yarn_to_json(yarn: YarnConfig | None) -> dict[str, Any]:
    if yarn is None:
        return {"rope_type": "default"}
    return {"rope_type": "yarn"} | {name: getattr(yarn, field) for field, name in _YARN_NAMES.items()}
