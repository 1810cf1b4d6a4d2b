"""The model: embedding, layers, head; one sequence at a time or several side by side, always with explicit state.

    model = Model.load("path/to/DeepSeek-V4-Flash")
    logits = model.logits([0, 17, 42])           # [3, V] float32

    state = model.new_state()
    logits = model.step([0, 17, 42], state)      # a prompt, in one go or in pieces: the same bits
    logits = model.step([7], state)              # one more token

Shapes: T tokens of all segments, M streams, D width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pelagos.common.errors import UsageError
from pelagos.model.attention import Context
from pelagos.model.block import Block
from pelagos.model.config import ModelConfig
from pelagos.model.layers import Embedding, Linear, Norm
from pelagos.model.mhc import StreamHead
from pelagos.model.mtp import MtpBlock
from pelagos.model.native_state import OFFICIAL_ROWS, NativeState, RowFormats, SequenceMemory
from pelagos.model.sequences import Segment, Sequences
from pelagos.model.state import State
from pelagos.ops.dispatch import Ops, Wanted, reference_ops

if TYPE_CHECKING:
    from pelagos.model.native import NativeForward

AnyState = State | SequenceMemory


class Model(nn.Module):
    """Weights of one model and the functions they define. Attribute names are those of official checkpoints."""

    def __init__(self, config: ModelConfig, ops: Ops | None = None) -> None:
        """Unfilled weights on torch's current default device; use ``Model.load`` for a model with values.

        ``ops``: the implementation to run on; None: the reference.
        """
        super().__init__()
        ops = ops or reference_ops()
        self.config, self.ops = config, ops
        self.dtype: torch.dtype = getattr(torch, config.activation_dtype)
        self.embed = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer, ops) for layer in config.layers)
        self.norm = Norm(config.hidden_size, config.norm_eps, ops)
        self.hc_head = StreamHead(config, ops)
        self.head = Linear(config.hidden_size, config.vocab_size, ops)
        self.mtp = nn.ModuleList(MtpBlock(config, layer, ops) for layer in config.mtp_layers)
        self._native: NativeForward | None = None

    @staticmethod
    def load(
        path_or_preset: str | PathLike[str],
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        *,
        official_rounding: bool | None = None,
        implementation: Wanted | None = None,
    ) -> "Model":
        """A model from a checkpoint folder, or a preset with random weights (same weights every time).

        Weights stay memory-mapped and in their stored format until an op needs them. ``dtype``: of activations,
        float32, bfloat16 or float16; None: what the config says. ``official_rounding``: the served model's
        low-precision steps; None: what the config says (on for quantised checkpoints). ``implementation``: native
        code or the reference ops; auto: native where it can run; None: what the environment says, else auto. Raises
        CheckpointError, ConfigError, UsageError or ResourceError before memory is taken.
        """
        from pelagos.model.loading import load_model

        return load_model(path_or_preset, device, dtype, official_rounding, implementation)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @property
    def native(self) -> "NativeForward | None":
        """The native forward pass that inference runs on; None: the modules' own ops."""
        return self._native

    def use_native(self, formats: RowFormats = OFFICIAL_ROWS) -> None:
        """Run inference in native code from now on, on states with rows in ``formats``. The weights must not change
        afterwards. See ``native.unsupported`` for what it cannot run; states made before do not fit."""
        from pelagos.model.native import NativeForward

        self._native = NativeForward(self, formats)

    def new_state(self) -> AnyState:
        """The state of an empty sequence."""
        if self._native:
            return NativeState(self._native.layout)
        return State.new(self.config, self.config.layers, self.dtype, self.device)

    def new_draft_state(self) -> AnyState:
        """The state of an empty sequence in the multi-token-prediction blocks, for ``draft``."""
        if self._native:
            return NativeState(self._native.draft_layout)
        return State.new(self.config, self.config.mtp_layers, self.dtype, self.device)

    def logits(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Logits at every position of one whole sequence, [T, V] float32; nothing is kept."""
        return self.step(token_ids, self.new_state())

    def step(self, token_ids: Sequence[int] | Tensor, state: AnyState, *, num_logits: int | None = None) -> Tensor:
        """Read the next tokens of a sequence and advance its state.

        token_ids: T >= 1 ids from 0 to V − 1. Returns float32 logits of the last ``num_logits`` tokens (None: of all),
        [num_logits, V]. How a sequence is cut into calls does not change a bit of them. Raises UsageError for ids
        out of range and for sequences beyond ``config.max_positions``; the state is then untouched.
        """
        return self.step_batch([token_ids], [state], num_logits=num_logits)[0]

    @torch.no_grad()
    def step_batch(
        self, token_ids: Sequence[Sequence[int] | Tensor], states: Sequence[AnyState], *, num_logits: int | None = None
    ) -> list[Tensor]:
        """``step`` for several sequences of any lengths at once; each gets the bits it would get alone."""
        ids = [self._checked_ids(tokens, state) for tokens, state in zip(token_ids, states, strict=True)]
        if self._native:
            return self._native.run(ids, _native(states), num_logits)
        states = _plain(states)
        flat, positions, segments = _batch(ids, states)
        streams = self(flat, positions, self._contexts(segments, states))
        _advance(states, segments)
        counts = [len(tokens) if num_logits is None else min(num_logits, len(tokens)) for tokens in ids]
        picked = [streams[segment.stop - n : segment.stop] for segment, n in zip(segments, counts, strict=True)]
        return list(torch.split(self.output(torch.cat(picked)), counts))

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        contexts: Sequence[Context],
        run_layer: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Residual streams after the last layer, [T, M, D]. token_ids, positions: [T] int64; one context per layer.

        ``run_layer(layer, *arguments)`` calls a layer in the caller's own way; None: plainly.
        """
        streams: Tensor = self.embed(token_ids, self.dtype).unsqueeze(1).repeat(1, self.config.num_streams, 1)
        for layer, context in zip(self.layers, contexts, strict=True):
            arguments = (streams, token_ids, positions, context)
            streams = run_layer(layer, *arguments) if run_layer else layer(*arguments)
        return streams

    def output(self, streams: Tensor) -> Tensor:
        """Logits of streams after the last layer: [T, M, D] -> [T, V] float32."""
        logits: Tensor = self.head(self.norm(self.hc_head(streams)), out_dtype=torch.float32)
        return logits

    @torch.no_grad()
    def streams(self, token_ids: Sequence[int] | Tensor, state: AnyState) -> Tensor:
        """``step``, with the residual streams [T, M, D] in place of logits: what ``draft`` takes."""
        ids = self._checked_ids(token_ids, state)
        if self._native:
            return self._native.streams(ids, _native([state])[0])
        plain = _plain([state])
        flat, positions, segments = _batch([ids], plain)
        streams: Tensor = self(flat, positions, self._contexts(segments, plain))
        _advance(plain, segments)
        return streams

    def _contexts(self, segments: list[Segment], states: Sequence[State]) -> list[Context]:
        layers = range(len(self.layers))
        return [Sequences(segments=segments, states=[state.layers[i] for state in states]) for i in layers]

    @torch.no_grad()
    def draft(self, streams: Tensor, next_ids: Sequence[int] | Tensor, state: AnyState) -> tuple[Tensor, Tensor]:
        """Predict the token after next with the multi-token-prediction block.

        streams: [T, M, D] of the next T positions of one sequence (from ``streams``, or from this function to draft
        further); next_ids: the T tokens that follow those positions; state: from ``new_draft_state``. Returns logits
        [T, V] float32 and the block's streams [T, M, D]. Raises UsageError if the model has no such block.
        """
        if not self.mtp:
            raise UsageError("this model has no multi-token-prediction block to draft with")
        ids = self._checked_ids(next_ids, state)
        if self._native:
            return self._native.draft(streams, ids, _native([state])[0])
        plain = _plain([state])
        flat, positions, segments = _batch([ids], plain)
        block = self.mtp[0]
        assert isinstance(block, MtpBlock)
        context = Sequences(segments=segments, states=plain[0].layers[:1])
        hidden, streams = block.draft(streams, self.embed(flat, self.dtype), flat, positions, context)
        _advance(plain, segments)
        return self.head(hidden, out_dtype=torch.float32), streams

    def _checked_ids(self, token_ids: Sequence[int] | Tensor, state: AnyState) -> Tensor:
        ids = torch.as_tensor(token_ids, device=self.device)
        limit = self.config.max_positions
        if ids.dim() != 1 or len(ids) == 0 or ids.dtype.is_floating_point or ids.dtype == torch.bool:
            raise UsageError("token_ids must be a flat list of at least one whole number")
        bad = ((ids < 0) | (ids >= self.config.vocab_size)).nonzero()
        if len(bad):
            at = int(bad[0])
            raise UsageError(f"token_ids[{at}] must be from 0 to {self.config.vocab_size - 1}, got {int(ids[at])}")
        if state.num_tokens + len(ids) > limit:
            raise UsageError(
                f"the sequence would have {state.num_tokens + len(ids)} tokens, the model takes at most {limit}"
            )
        return ids.long()


def _native(states: Sequence[AnyState]) -> list[SequenceMemory]:
    fitting = [state for state in states if isinstance(state, SequenceMemory)]
    if len(fitting) != len(states):
        raise UsageError("a state made before use_native does not fit: make it with new_state again")
    return fitting


def _plain(states: Sequence[AnyState]) -> list[State]:
    fitting = [state for state in states if isinstance(state, State)]
    if len(fitting) != len(states):
        raise UsageError("a state of the native forward pass does not fit a model without it")
    return fitting


def _batch(token_ids: list[Tensor], states: Sequence[AnyState]) -> tuple[Tensor, Tensor, list[Segment]]:
    segments: list[Segment] = []
    for ids, state in zip(token_ids, states, strict=True):
        start = segments[-1].stop if segments else 0
        segments.append(Segment(start=start, stop=start + len(ids), position=state.num_tokens))
    flat = torch.cat(token_ids)
    positions = [torch.arange(s.position, s.position + s.stop - s.start, device=flat.device) for s in segments]
    return flat, torch.cat(positions), segments


def _advance(states: Sequence[AnyState], segments: list[Segment]) -> None:
    for state, segment in zip(states, segments, strict=True):
        state.num_tokens += segment.stop - segment.start
