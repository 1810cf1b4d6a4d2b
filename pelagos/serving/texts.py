"""Text, tokens and prompts without generation: /tokenize, /detokenize, /render."""

from typing import Any

from pelagos.common.fields import show
from pelagos.serving import fields
from pelagos.serving.chat import prepare_chat_conversion, prompt_of
from pelagos.serving.errors import ApiError
from pelagos.serving.fields import FieldTable
from pelagos.serving.state import Call, Server, namespace

TOKENIZE = FieldTable(acts=("model", "text", "prompt", "add_special_tokens", "return_token_strs"))
DETOKENIZE = FieldTable(acts=("model", "tokens"))
MAX_TEXT = 1 << 26


def tokenize(server: Server, call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Ids of a text (``prompt`` means the same), never a special token but, if asked, the start token."""
    asked = TOKENIZE.checked(given)
    text = fields.text(asked, "text", MAX_TEXT)
    text = fields.text(asked, "prompt", MAX_TEXT) if text is None else text
    if text is None:
        raise ApiError(400, "text must be given: the text to make tokens of", param="text")
    ids = server.tokenizer.encode(text)
    if fields.boolean(asked, "add_special_tokens"):
        ids = [server.tokenizer.bos_id, *ids]
    reply: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": server.context_length}
    if fields.boolean(asked, "return_token_strs"):
        reply["token_strs"] = [server.tokenizer.decode([token_id]) for token_id in ids]
    return reply


def detokenize(server: Server, call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The text of ids."""
    tokens = DETOKENIZE.checked(given).get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise ApiError(400, f"tokens must be a list of token ids, got {show(tokens)}", param="tokens")
    text = server.tokenizer.decode(tokens)
    return {"text": text, "prompt": text}


def render(server: Server, call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What the model would see of a chat request: text with the special tokens spelled out, and ids."""
    conversion = prepare_chat_conversion(server, given)
    ids = prompt_of(server, namespace(call, fields.text(given, "user_id", 512)), conversion)
    return {
        "prompt": server.tokenizer.decode(ids),
        "tokens": ids,
        "count": len(ids),
        "thinking": conversion.thinking,
        "context_length": server.context_length,
    }
