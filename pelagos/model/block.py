"""One layer: attention and mixture of experts, each reading from and writing to the residual streams."""

from torch import Tensor, nn

from pelagos.model.attention import Attention, Context
from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.layers import Norm
from pelagos.model.mhc import StreamMixer
from pelagos.model.moe import MoE
from pelagos.ops.dispatch import Ops


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops) -> None:
        super().__init__()
        self.hc_attn = StreamMixer(config, ops)
        self.attn_norm = Norm(config.hidden_size, config.norm_eps, ops)
        self.attn = Attention(config, layer, ops)
        self.hc_ffn = StreamMixer(config, ops)
        self.ffn_norm = Norm(config.hidden_size, config.norm_eps, ops)
        self.ffn = MoE(config, layer, ops)

    def forward(self, streams: Tensor, token_ids: Tensor, positions: Tensor, context: Context) -> Tensor:
        """streams: [T, M, D] -> [T, M, D]; token_ids, positions: [T]."""
        u, post, mix = self.hc_attn.read(streams)
        streams = self.hc_attn.write(streams, self.attn(self.attn_norm(u), positions, context), post, mix)
        u, post, mix = self.hc_ffn.read(streams)
        return self.hc_ffn.write(streams, self.ffn(self.ffn_norm(u), token_ids), post, mix)
