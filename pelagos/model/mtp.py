"""Multi-token prediction: one more block that predicts the token after next.

Shapes: T tokens, M streams, D width.
"""

from torch import Tensor

from pelagos.model.attention import Context
from pelagos.model.block import Block
from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.layers import Linear, Norm
from pelagos.model.mhc import StreamHead
from pelagos.ops.dispatch import Ops


class MtpBlock(Block):
    """Joins the streams at position t with the embedding of token t+1; its output predicts token t+2."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops) -> None:
        super().__init__(config, layer, ops)
        rounds = config.official_rounding
        self.enorm = Norm(config.hidden_size, config.norm_eps, ops)
        self.hnorm = Norm(config.hidden_size, config.norm_eps, ops)
        self.e_proj = Linear(config.hidden_size, config.hidden_size, ops, rounds_input=rounds)
        self.h_proj = Linear(config.hidden_size, config.hidden_size, ops, rounds_input=rounds)
        self.norm = Norm(config.hidden_size, config.norm_eps, ops)
        self.hc_head = StreamHead(config, ops)

    def draft(
        self, streams: Tensor, next_embedded: Tensor, next_ids: Tensor, positions: Tensor, context: Context
    ) -> tuple[Tensor, Tensor]:
        """streams: [T, M, D] after the last main layer; next_embedded: [T, D]; positions: [T], of the streams.

        Returns the normed hidden vectors for the output head [T, D], and the block's own streams [T, M, D], from which
        a further draft step goes on.
        """
        joined = self.e_proj(self.enorm(next_embedded)).unsqueeze(1) + self.h_proj(self.hnorm(streams))
        streams = self(joined, next_ids, positions, context)
        return self.norm(self.hc_head(streams)), streams
