"""A conversation with a model over several turns: the user follows the sample's script, tools are really run."""

from typing import Any

from pelagos.chat.parse import ParsedMessage
from pelagos.chat.render import RenderedPrompt
from pelagos.chat.tokenizer import Tokenizer
from pelagos.training.tasks.encoding import render_history
from pelagos.training.tasks.grading import Grade, grade
from pelagos.training.tasks.sample import Sample
from pelagos.training.tasks.tools import run_tool

MAX_EXTRA_REPLIES = 2


class Episode:
    """Ask ``prompt``, give the model's answer to ``reply``, until ``finished``; then ``grade``.

    ``messages`` is the conversation so far. It ends early at an answer that no history can hold (no text and no call,
    or arguments that are not a JSON object), and when the model takes two turns more than the sample's assistant.
    """

    def __init__(self, sample: Sample) -> None:
        assert sample.kind == "chat"
        assert sample.quick is None
        self.sample = sample
        self.finished = False
        questions = [turn.as_message() for turn in sample.turns if turn.role == "user"]
        self.messages: list[dict[str, Any]] = questions[:1]
        self._questions = questions[1:]
        self._replies_left = MAX_EXTRA_REPLIES + sum(turn.role == "assistant" for turn in sample.turns)
        self._store: dict[str, str] = {}

    def prompt(self, tokenizer: Tokenizer) -> RenderedPrompt:
        """The prompt of the next assistant turn."""
        return render_history(self.sample, self.messages, tokenizer)

    def reply(self, message: ParsedMessage) -> None:
        """Take the model's turn; run its calls, or ask the next question."""
        assert not self.finished
        self._replies_left -= 1
        usable = all(call.complete for call in message.tool_calls) and (message.content or message.tool_calls)
        self.messages.append(message.as_message())
        if not usable or self._replies_left == 0:
            self.finished = True
        elif message.tool_calls:
            for call in message.tool_calls:
                result = run_tool(call.name, call.arguments, self._store)
                self.messages.append({"role": "tool", "content": result, "tool_call_id": call.call_id})
        elif self._questions:
            self.messages.append(self._questions.pop(0))
        else:
            self.finished = True

    def grade(self) -> Grade:
        """The grade of the whole conversation; an early end, or an answer where a call was due, counts as wrong."""
        assert self.finished
        result = grade(self.sample, self.messages)
        reached = not self._questions
        return Grade(correct=result.correct and reached, parts=result.parts | {"finished": reached})
