"""The layers of a model in config.json: their kinds, ratios and routers, and the draft blocks behind them.

Two spellings, read alone or together. Official: ``compress_ratios``, one per layer (0 window, 4 CSA, others HCA) and
further ones for draft blocks, and ``num_hash_layers``. Of transformers: ``layer_types`` with ``compress_rates``, and
``mlp_layer_types``. Where both are there they must agree.
"""

from typing import Any, Literal

from pelagos.common.errors import ConfigError
from pelagos.model.config import (
    PAGE_TOKENS,
    LayerConfig,
    LayerKind,
    ModelConfig,
    csa_layer,
    hca_layer,
    window_layer,
)
from pelagos.model.json_fields import JsonFields

_MAX_LAYERS = 1024
_MAX_DRAFT_BLOCKS = 16
_MAX_DSPARK_TOKENS = 1024
_NUM_DSPARK_BLOCKS = 3  # of every released model that has them
_RATIOS = (0, *(ratio for ratio in range(2, PAGE_TOKENS + 1) if PAGE_TOKENS % ratio == 0))
_RATES: dict[LayerKind, int] = {"csa": 4, "hca": 128}
_RATE_NAMES: dict[LayerKind, str] = {"csa": "compress_rate_csa", "hca": "compress_rate_hca"}
_KINDS: dict[str, LayerKind] = {
    "sliding_attention": "window",
    "compressed_sparse_attention": "csa",
    "heavily_compressed_attention": "hca",
}
_ROUTERS: dict[str, Literal["learned", "hash"]] = {"hash_moe": "hash", "moe": "learned"}
_TYPE_OF_KIND = {kind: name for name, kind in _KINDS.items()}
_TYPE_OF_ROUTER = {router: name for name, router in _ROUTERS.items()}


def read_layers(fields: JsonFields) -> dict[str, Any]:
    """The fields of ModelConfig about layers. Empty where that ends in a problem."""
    num_earlier_problems = len(fields.problems)
    num_layers = fields.whole("num_hidden_layers", low=1, high=_MAX_LAYERS, required=True)
    window = fields.read("sliding_window", LayerConfig, "window")
    ratios = fields.items("compress_ratios", _RATIOS)
    kinds = _read_kinds(fields, num_layers, ratios)
    routers = _read_routers(fields, num_layers)
    drafts = _read_drafts(fields, window, ratios[num_layers:] if ratios and num_layers else [])
    if kinds is None or routers is None or len(fields.problems) > num_earlier_problems:
        return {}
    layers = zip(kinds, routers, strict=True)
    return {"layers": tuple(_layer(kind, ratio, window, router) for (kind, ratio), router in layers)} | drafts


def _read_kinds(
    fields: JsonFields, num_layers: int | None, ratios: list[int] | None
) -> list[tuple[LayerKind, int | None]] | None:
    """Kind and ratio of each main layer; no ratio where it is ``window``."""
    types = fields.items("layer_types", tuple(_KINDS))
    rates = _read_rates(fields)
    if not fields.has("compress_ratios") and not fields.has("layer_types"):
        fields.problem("compress_ratios is missing: it must list the ratio of every layer")
    if num_layers is None:
        return None
    if types is not None and len(types) != num_layers:
        fields.problem(f"layer_types must list num_hidden_layers ({num_layers}) layers, got {len(types)}")
        return None
    if ratios is not None and not num_layers <= len(ratios) <= num_layers + _MAX_DRAFT_BLOCKS:
        fields.problem(
            f"compress_ratios must list num_hidden_layers ({num_layers}) ratios and at most {_MAX_DRAFT_BLOCKS} more "
            f"for draft blocks, got {len(ratios)}"
        )
        return None
    if types is not None:
        kinds = [_KINDS[name] for name in types]
    elif ratios is not None:
        kinds = [_kind_of(ratio) for ratio in ratios[:num_layers]]
    else:
        return None
    of_kind: dict[LayerKind, int | None] = {"window": 0, "csa": None, "hca": None, **rates}
    if ratios is None:
        return [(kind, of_kind[kind] or _RATES.get(kind)) for kind in kinds]
    for number, (kind, ratio) in enumerate(zip(kinds, ratios, strict=False)):
        if of_kind[kind] not in (None, ratio) or (kind != "window" and ratio == 0):
            fields.problem(f"compress_ratios[{number}] must be a ratio of {_TYPE_OF_KIND[kind]}, got {ratio}")
            return None
    return [(kind, ratio or None) for kind, ratio in zip(kinds, ratios, strict=False)]


def _kind_of(ratio: int) -> LayerKind:
    if ratio == 0:
        return "window"
    return "csa" if ratio == _RATES["csa"] else "hca"


def _read_rates(fields: JsonFields) -> dict[LayerKind, int]:
    """Ratios by layer kind, as far as they are given."""
    inner = fields.inner("compress_rates", ignored=(_TYPE_OF_KIND["window"],))
    rates: dict[LayerKind, int] = {}
    for kind, flat_name in _RATE_NAMES.items():
        rate = fields.choice(flat_name, _RATIOS[1:])
        inner_rate = None if inner is None else inner.choice(_TYPE_OF_KIND[kind], _RATIOS[1:])
        if rate is None:
            rate = inner_rate
        elif inner_rate not in (None, rate):
            fields.problem(f"{flat_name} must be what compress_rates says ({inner_rate}), got {rate}")
        if rate is not None:
            rates[kind] = rate
    return rates


def _read_routers(fields: JsonFields, num_layers: int | None) -> list[Literal["learned", "hash"]] | None:
    types = fields.items("mlp_layer_types", tuple(_ROUTERS))
    num_hash = fields.whole("num_hash_layers", low=0, high=_MAX_LAYERS if num_layers is None else num_layers)
    if not fields.has("mlp_layer_types") and not fields.has("num_hash_layers"):
        fields.problem("num_hash_layers is missing: it must say how many of the first layers route by token id")
    if num_layers is None:
        return None
    first = None if num_hash is None else ["hash_moe"] * num_hash + ["moe"] * (num_layers - num_hash)
    if types is not None and len(types) != num_layers:
        fields.problem(f"mlp_layer_types must list num_hidden_layers ({num_layers}) layers, got {len(types)}")
    elif types is not None and first not in (None, types):
        fields.problem(f"num_hash_layers must be what mlp_layer_types says, got {num_hash}")
    types = types or first
    return None if types is None else [_ROUTERS[name] for name in types]


def _read_drafts(fields: JsonFields, window: int | None, ratios: list[int]) -> dict[str, Any]:
    """Draft blocks: of DSpark where its fields are there, otherwise for multi-token prediction. ``ratios``: theirs."""
    num_mtp = fields.whole("num_nextn_predict_layers", low=0, high=_MAX_DRAFT_BLOCKS)
    rank = fields.read("dspark_markov_rank", ModelConfig, "dspark_markov_rank")
    block_size = fields.whole("dspark_block_size", low=1, high=_MAX_DSPARK_TOKENS)
    if any(ratios):
        fields.problem("compress_ratios must be 0 behind those of the main layers")
    if rank is not None or block_size is not None:
        if not fields.has("dspark_markov_rank"):
            fields.problem("dspark_markov_rank is missing: dspark_block_size needs it")
        return {"num_dspark_blocks": len(ratios) or _NUM_DSPARK_BLOCKS, "dspark_markov_rank": rank}
    num_mtp = len(ratios) if num_mtp is None else num_mtp
    return {"mtp_layers": () if window is None else (window_layer(window=window),) * num_mtp}


def _layer(kind: LayerKind, ratio: int | None, window: int, router: Literal["learned", "hash"]) -> LayerConfig:
    if ratio is None:
        return window_layer(window=window, router=router)
    make = csa_layer if kind == "csa" else hca_layer
    return make(window=window, ratio=ratio, router=router)


def layers_to_json(config: ModelConfig) -> dict[str, Any]:
    """Both spellings. Raises ConfigError for layers that neither can describe."""
    layers = config.layers
    window = layers[0].window
    for number, layer in enumerate((*layers, *config.mtp_layers)):
        if layer != _layer(layer.kind, layer.ratio, window, layer.router):
            raise ConfigError(f"layers[{number}] must be a plain {layer.kind} layer of window {window} in config.json")
    num_drafts = config.num_dspark_blocks or len(config.mtp_layers)
    routers = [layer.router for layer in layers]
    rates = {kind: {layer.ratio for layer in layers if layer.kind == kind} for kind in _RATES}
    data: dict[str, Any] = {
        "num_hidden_layers": len(layers),
        "sliding_window": window,
        "compress_ratios": [layer.ratio or 0 for layer in layers] + [0] * num_drafts,
        "layer_types": [_TYPE_OF_KIND[layer.kind] for layer in layers],
        "compress_rates": {_TYPE_OF_KIND[kind]: found.pop() for kind, found in rates.items() if len(found) == 1},
        "mlp_layer_types": [_TYPE_OF_ROUTER[router] for router in routers],
        "num_nextn_predict_layers": 1 if config.num_dspark_blocks else num_drafts,
    }
    if routers == sorted(routers):  # hash layers come first
        data["num_hash_layers"] = routers.count("hash")
    if config.num_dspark_blocks:
        data["dspark_markov_rank"] = config.dspark_markov_rank
    return data
