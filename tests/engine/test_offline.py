"""Generation: where it ends, what it reports, and that how the work is cut changes nothing."""

import itertools
import math

import numpy as np
import pytest
import torch
from scripted_model import PieceDecoder, RandomModel, ScriptedModel, ScriptedState
from torch import Tensor

from pelagos.common.errors import PelagosError, UsageError
from pelagos.engine.offline import Generation, Progress, Token, generate, generate_stream
from pelagos.engine.params import SamplingParams
from pelagos.engine.sampler import History, sample
from pelagos.model.transformer import Model

GREEDY = SamplingParams(max_tokens=8)


def test_output_is_the_loop_written_out() -> None:
    model = RandomModel(vocab_size=50)
    params = SamplingParams(temperature=1.0, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.3, seed=5)
    ids, history = [3, 1, 4], History(50, [3, 1, 4])
    for _ in range(20):
        token_id = sample(model.logits(ids), params, history, len(ids)).token_id
        ids.append(token_id)
        history.add(token_id)
    result = generate(RandomModel(vocab_size=50), [3, 1, 4], SamplingParams(**vars(params) | {"max_tokens": 20}))
    assert result.token_ids == ids[3:]
    assert (result.finish_reason, result.stop_string, result.text, result.seed) == ("length", None, None, 5)
    assert result.state_bytes == 8 * (3 + 19)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8, 100])
def test_prompt_is_read_in_chunks_and_only_the_last_asks_for_logits(chunk: int) -> None:
    model = RandomModel()
    result = generate(model, list(range(7)), GREEDY, prefill_chunk=chunk)
    reads = list(itertools.takewhile(lambda call: call[1] == 0, model.calls))
    assert all(length == chunk for length, _ in reads)
    assert len(reads) == math.ceil(7 / chunk) - 1
    assert model.calls[len(reads)] == (7 - chunk * len(reads), 1)
    assert model.calls[len(reads) + 1 :] == [(1, 1)] * 7  # the eighth token is chosen and not read back
    assert result.token_ids == generate(RandomModel(), list(range(7)), GREEDY).token_ids


def test_progress_tells_how_much_of_the_prompt_is_read() -> None:
    stream = generate_stream(RandomModel(), list(range(7)), GREEDY, prefill_chunk=3)
    progress = [event for event in stream if isinstance(event, Progress)]
    assert [(event.num_read, event.num_prompt_tokens) for event in progress] == [(3, 7), (6, 7), (7, 7)]


@pytest.mark.parametrize("eos_ids", [(9,), (4, 9)])
def test_an_end_token_is_in_the_ids_and_not_in_the_text(eos_ids: tuple[int, ...]) -> None:
    decoder = PieceDecoder([b"<%d>" % i for i in range(10)])
    result = generate(ScriptedModel([1, 2, 9, 3], eos_ids=eos_ids), [0], GREEDY, decoder)
    assert (result.token_ids, result.text, result.finish_reason) == ([1, 2, 9], "<1><2>", "stop")
    assert result.stop_string is None


def test_ignore_eos_goes_on_and_stop_ids_still_end() -> None:
    model = ScriptedModel([1, 9, 3, 4, 5], eos_ids=(9,))
    params = SamplingParams(ignore_eos=True, stop_ids=(4,))
    result = generate(model, [0], params, PieceDecoder([b"<%d>" % i for i in range(10)]))
    assert (result.token_ids, result.text, result.finish_reason) == ([1, 9, 3, 4], "<1><9><3>", "stop")


def test_an_end_token_releases_the_text_held_back_for_a_stop_string() -> None:
    decoder = PieceDecoder([b"?", b"one <e", b"?"])
    result = generate(ScriptedModel([1, 2], eos_ids=(2,)), [0], SamplingParams(stop=("<end>",)), decoder)
    assert (result.text, result.finish_reason, result.stop_string) == ("one <e", "stop", None)


def test_max_tokens_releases_the_text_held_back() -> None:
    decoder = PieceDecoder([b"?", b"one <e", "🙂".encode()[:2]])
    events = list(generate_stream(ScriptedModel([1, 2]), [0], SamplingParams(stop=("<end>",), max_tokens=2), decoder))
    assert [event.text for event in events if not isinstance(event, Progress)] == ["one ", "<e\ufffd", "one <e\ufffd"]
    assert isinstance(events[-1], Generation)
    assert events[-1].finish_reason == "length"


def test_a_stop_string_made_whole_by_the_end_of_text_counts() -> None:
    decoder = PieceDecoder([b"?", b"a", "🙂".encode()[:2]])
    result = generate(ScriptedModel([1, 2]), [0], SamplingParams(stop=("\ufffd",), max_tokens=2), decoder)
    assert (result.text, result.finish_reason, result.stop_string) == ("a", "stop", "\ufffd")


def test_stop_strings_over_every_split_into_tokens() -> None:
    data = "Ein 🙂 <end> x".encode()
    cuts = itertools.chain(itertools.combinations(range(1, len(data)), 2), [tuple(range(1, len(data)))])
    for cut in cuts:
        borders = [0, *cut, len(data)]
        pieces = [b"?", *(data[a:b] for a, b in itertools.pairwise(borders))]
        script = list(range(1, len(pieces)))
        params = SamplingParams(stop=("never", "<end>"), max_tokens=len(script))
        events = list(generate_stream(ScriptedModel(script), [0], params, PieceDecoder(pieces)))
        result = events[-1]
        assert isinstance(result, Generation)
        assert (result.text, result.stop_string, result.finish_reason) == ("Ein 🙂 ", "<end>", "stop")
        stream = [event for event in events if isinstance(event, Token)]
        assert "".join(event.text for event in stream) == "Ein 🙂 "
        assert all("<" not in event.text and "\ufffd" not in event.text for event in stream)
        ends = next(n for n in range(len(script) + 1) if b"<end>" in b"".join(pieces[1 : n + 1]))
        assert result.token_ids == script[:ends]


def test_events_come_as_the_tokens_do() -> None:
    model = ScriptedModel([1, 2, 3], max_positions=100)
    stream = generate_stream(model, [0], SamplingParams(max_tokens=3, logprobs=1))
    assert next(stream) == Progress(num_read=1, num_prompt_tokens=1)
    first = next(stream)
    assert isinstance(first, Token)
    assert (first.sampled.token_id, len(model.calls)) == (1, 1)
    assert first.sampled.top_logprobs == ((1, first.sampled.logprob),)
    seen: list[Token] = []
    result = generate(ScriptedModel([1, 2, 3]), [0], SamplingParams(max_tokens=3, logprobs=1), on_token=seen.append)
    assert [event.sampled for event in seen] == list(result.tokens)
    assert result.token_ids == [1, 2, 3]


@pytest.mark.parametrize(("num_prompt", "num_tokens"), [(9, 1), (10, 0)])
def test_the_longest_sequence_is_a_limit(num_prompt: int, num_tokens: int) -> None:
    result = generate(RandomModel(max_positions=10), [1] * num_prompt, SamplingParams(max_tokens=5))
    assert (len(result.token_ids), result.finish_reason) == (num_tokens, "length")
    assert result.timings.prefill_tokens_per_second > 0
    assert result.timings.decode_tokens_per_second is None


def test_timings_count_the_work_and_not_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # one second passes between any two looks at it
    monkeypatch.setattr("pelagos.engine.offline.time.perf_counter", lambda: float(next(clock)))
    stream = generate_stream(ScriptedModel([1, 2, 3], num_prompt_tokens=2), [0, 0], SamplingParams(max_tokens=3))
    for event in stream:
        for _ in range(100):
            next(clock)
        if isinstance(event, Generation):
            assert (event.timings.prefill_seconds, event.timings.decode_seconds) == (1.0, 3.0)
            assert (event.timings.prefill_tokens_per_second, event.timings.decode_tokens_per_second) == (2.0, 2 / 3)


def test_a_drawn_seed_gives_the_same_output_again() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=30)
    first = generate(RandomModel(), [1], params)
    again = generate(RandomModel(), [1], SamplingParams(temperature=1.0, max_tokens=30, seed=first.seed))
    assert again.token_ids == first.token_ids
    assert generate(RandomModel(), [1], params).token_ids != first.token_ids


def test_an_output_goes_on_where_a_shorter_one_ended() -> None:
    whole = generate(RandomModel(), [1, 2], SamplingParams(temperature=1.0, seed=8, max_tokens=20)).token_ids
    part = generate(RandomModel(), [1, 2], SamplingParams(temperature=1.0, seed=8, max_tokens=7)).token_ids
    rest = generate(RandomModel(), [1, 2, *part], SamplingParams(temperature=1.0, seed=8, max_tokens=13)).token_ids
    assert part + rest == whole


class NoWork(RandomModel):
    def new_state(self) -> ScriptedState:
        raise AssertionError("work began")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt must hold at least one token, got none"),
        ([0] * 1001, "the prompt has 1001 tokens, the model takes at most 1000"),
        ([0, 1, 32], "prompt token 2 must be a whole number from 0 to 31, got 32"),
        ([-1], "prompt token 0 must be a whole number from 0 to 31, got -1"),
        ([0, 1.5], "prompt token 1 must be a whole number from 0 to 31, got 1.5"),
        (["7"], "prompt token 0 must be a whole number from 0 to 31, got '7'"),
        ([0, 10**5000], "prompt token 1 must be a whole number from 0 to 31, got a number of thousands of digits"),
    ],
)
def test_prompts_are_refused_at_the_call(prompt: list[int], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        generate_stream(NoWork(), prompt, GREEDY)
    assert str(caught.value) == message


def test_other_arguments_are_refused_at_the_call() -> None:
    with pytest.raises(UsageError, match="prefill_chunk must be a whole number of at least 1, got 0"):
        generate_stream(NoWork(), [1], GREEDY, prefill_chunk=0)
    with pytest.raises(UsageError, match="stop needs the text of the output"):
        generate_stream(NoWork(), [1], SamplingParams(stop=("x",)))


def test_numpy_ids_are_ids() -> None:
    result = generate(RandomModel(), np.array([1, 2], dtype=np.int32), GREEDY)
    assert result.token_ids == generate(RandomModel(), [1, 2], GREEDY).token_ids


def test_a_broken_model_ends_in_one_sentence() -> None:
    class Broken(RandomModel):
        def logits(self, token_ids: list[int]) -> Tensor:
            return torch.full((32,), math.nan)

    with pytest.raises(PelagosError, match="logits for position 2 are not finite"):
        generate(Broken(), [1, 2], GREEDY)


def test_the_real_model_gives_the_same_bits_however_the_prompt_is_read() -> None:
    model = Model.load("tiny")
    prompt = [(7 * n) % 512 for n in range(45)]
    params = SamplingParams(
        temperature=1.0, top_p=0.9, repetition_penalty=1.1, seed=2, max_tokens=12, logprobs=3, ignore_eos=True
    )
    whole = generate(model, prompt, params)
    assert len(whole.token_ids) == 12
    for chunk in (1, 7, 16):
        assert generate(model, prompt, params, prefill_chunk=chunk).tokens == whole.tokens
