"""One layer: attention and mixture of experts, each reading from and writing to the residual streams."""

from torch import Tensor, nn

from pelagos.model.attention import Attention, Segment
from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.layers import Norm
from pelagos.model.mhc import StreamMixer
from pelagos.model.moe import MoE
from pelagos.model.state import LayerState


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.hc_attn = StreamMixer(config)
        self.attn_norm = Norm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, layer)
        self.hc_ffn = StreamMixer(config)
        self.ffn_norm = Norm(config.hidden_size, config.norm_eps)
        self.ffn = MoE(config, layer)

    def forward(
        self,
        streams: Tensor,
        token_ids: Tensor,
        positions: Tensor,
        segments: list[Segment],
        states: list[LayerState],
    ) -> Tensor:
        """streams: [T, M, D] -> [T, M, D]; token_ids, positions: [T]; one state per segment, advanced here."""
        u, post, mix = self.hc_attn.read(streams)
        streams = self.hc_attn.write(streams, self.attn(self.attn_norm(u), positions, segments, states), post, mix)
        u, post, mix = self.hc_ffn.read(streams)
        return self.hc_ffn.write(streams, self.ffn(self.ffn_norm(u), token_ids), post, mix)
