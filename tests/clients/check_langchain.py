"""langchain-deepseek: whole and streamed answers, reasoning, a forced call and what follows it, usage, an error."""

import sys
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_deepseek import ChatDeepSeek
from openai import BadRequestError


@tool
def weather(city: Literal["Rome", "Paris"]) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def main(url: str, model: str) -> None:
    chat = ChatDeepSeek(
        model=model, api_key="none", api_base=f"{url}/v1", max_tokens=200, max_retries=0, stream_usage=True
    )
    whole = chat.invoke("Hello")
    assert isinstance(whole, AIMessage)
    assert whole.usage_metadata["input_tokens"] > 0
    assert whole.usage_metadata["output_tokens"] > 0
    assert whole.content or whole.additional_kwargs["reasoning_content"]

    pieces = list(chat.stream("Hello again"))
    text = "".join(piece.content or piece.additional_kwargs.get("reasoning_content", "") for piece in pieces)
    assert text
    assert any(piece.usage_metadata for piece in pieces)

    forced = chat.bind_tools([weather], tool_choice="any")
    question = HumanMessage("Weather in Rome? " * 30)
    asked = next(
        m for m in (forced.invoke([question]) for _ in range(20)) if m.response_metadata["finish_reason"] != "length"
    )
    assert asked.tool_calls, asked
    assert all((call["name"], list(call["args"])) == ("weather", ["city"]) for call in asked.tool_calls)
    history = [question, asked, *(ToolMessage("sunny", tool_call_id=call["id"]) for call in asked.tool_calls)]
    told = chat.bind_tools([weather]).invoke(history)
    # All that the model read and wrote so far is known, though the client sent no reasoning back.
    assert told.usage_metadata["input_token_details"]["cache_read"] >= (
        asked.usage_metadata["input_tokens"] + asked.usage_metadata["output_tokens"] - 1
    ), (asked.usage_metadata, told.usage_metadata)

    try:
        ChatDeepSeek(model="nobody", api_key="none", api_base=f"{url}/v1", max_retries=0).invoke("x")
        said = "nothing"
    except BadRequestError as error:
        said = str(error)
    assert "is not served here" in said


main(*sys.argv[1:])
