"""How an engine runs: its memory, its queue, the size of its steps."""

from dataclasses import dataclass

from pelagos.common.fields import check_fields, setting


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    cache_bytes: int | None = setting(
        None, help="memory for the rows of all sequences; None: a quarter of what is free", low=1 << 16, high=1 << 44
    )
    max_running: int = setting(64, help="requests worked on at once", low=1, high=4096)
    max_waiting: int = setting(1024, help="requests in the queue; further ones are refused", low=1, high=1 << 20)
    prefill_tokens: int = setting(512, help="prompt tokens read per step", low=16, high=512)
    shared_prefill_tokens: int = setting(
        128, help="prompt tokens read per step while answers are being written", low=16, high=512
    )
    draft_tokens: int = setting(
        1, help="tokens drafted by multi-token prediction per step, as long as that pays; 0: none", low=0, high=3
    )
    max_drafting: int = setting(4, help="answers at once above which nothing is drafted", low=1, high=4096)

    def __post_init__(self) -> None:
        check_fields(self)
