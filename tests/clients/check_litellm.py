"""litellm: as DeepSeek's API and as Anthropic's, whole and streamed, a forced call."""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no look at the net

import litellm

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]},
    },
}


def main(url: str, model: str) -> None:
    hello = [{"role": "user", "content": "Hello"}]
    for name, base in ((f"deepseek/{model}", f"{url}/v1"), (f"anthropic/{model}", url)):
        options = {"model": name, "api_base": base, "api_key": "none", "max_tokens": 200, "num_retries": 0}
        whole = litellm.completion(messages=hello, **options)
        assert whole.usage.prompt_tokens > 0
        assert whole.usage.completion_tokens > 0
        pieces = list(litellm.completion(messages=hello, stream=True, **options))
        assert pieces[-1].choices[0].finish_reason or pieces[-2].choices[0].finish_reason
        for _ in range(20):
            called = litellm.completion(messages=hello, tools=[TOOL], tool_choice="required", **options).choices[0]
            if called.finish_reason != "length":
                break
        assert called.message.tool_calls[0].function.arguments.replace(" ", "") == '{"city":"Rome"}', called


main(*sys.argv[1:])
