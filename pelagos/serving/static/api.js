// The server's API as this page uses it: its models, token counts, and one answer as a stream of events.

import { EventParser } from "./sse.js";

/** Something a person must be told, in words. kind: offline, refused (a status code), broken (cut mid-answer), failed. */
export class ServerError extends Error {
  constructor(message, { kind, status = null }) {
    super(message);
    this.kind = kind;
    this.status = status;
  }
}

const WORDS = {
  401: "The server wants an API key, or does not know this one. Set it in the settings.",
  402: "The balance of this API key is used up.",
  403: "This API key may not do that.",
  404: "The server does not know this address or model.",
  413: "That is more than the server accepts in one request.",
  429: "The server has no room for another request right now.",
  500: "The server failed.",
  502: "The server behind the proxy does not answer.",
  503: "The server is starting, stopping or overloaded.",
  504: "The server took too long to answer.",
};

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server does not answer. Is it running, and is the network up?", { kind: "offline" });
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The server's own sentence if it gave one, behind ours where ours says what to do. */
async function refusal(response) {
  const own = WORDS[response.status] ?? `The server refused the request (status ${response.status}).`;
  let said = "";
  try {
    const text = await response.text();
    said = JSON.parse(text)?.error?.message ?? "";
  } catch {
    // no JSON: a proxy's page, say; our words must do
  }
  said = typeof said === "string" ? said.slice(0, 1000).replace(/[^.!?]$/, "$&.") : "";
  const parts = response.status === 400 || response.status === 422 ? [said || own] : [own, said && `It says: ${said}`];
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  if (Number.isFinite(seconds)) parts.push(`Try again in ${Math.ceil(seconds)} s.`);
  return new ServerError(parts.filter(Boolean).join(" "), { kind: "refused", status: response.status });
}

/** [{id, contextLength or null}] */
export async function listModels(key) {
  const response = await request("v1/models", { headers: headers(key) });
  const list = await response.json();
  return (list.data ?? []).map((model) => ({ id: String(model.id), contextLength: model.context_length ?? null }));
}

export async function countTokens(text, key, signal) {
  const response = await request("tokenize", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify({ text }),
    signal,
  });
  return (await response.json()).count;
}

/**
 * One answer. Yields {type: "reading", read, total}, {type: "delta", reasoning, content, calls}, {type: "usage", usage},
 * {type: "finish", reason}. Returns when the server says it is done; throws ServerError, or AbortError after an abort.
 */
export async function* streamChat(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: headers(key),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  const parser = new EventParser();
  let finished = false;
  for (;;) {
    let piece;
    try {
      piece = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("The connection broke.", { kind: "broken" });
    }
    for (const found of parser.push(decoder.decode(piece.value ?? new Uint8Array(), { stream: !piece.done }))) {
      if (found.data === "[DONE]") return;
      for (const event of found.data === undefined ? commentEvents(found.comment) : dataEvents(found.data)) {
        finished ||= event.type === "finish";
        yield event;
      }
    }
    if (piece.done) {
      if (finished) return;
      throw new ServerError("The connection ended before the answer did.", { kind: "broken" });
    }
  }
}

function commentEvents(comment) {
  const match = /reading (\d+) of (\d+) tokens/.exec(comment);
  return match ? [{ type: "reading", read: Number(match[1]), total: Number(match[2]) }] : [{ type: "alive" }];
}

function dataEvents(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new ServerError("The server sent something that is not JSON.", { kind: "failed" });
  }
  if (chunk.error) {
    const said = typeof chunk.error.message === "string" ? chunk.error.message : "no reason given";
    throw new ServerError(`The server stopped in the middle: ${said}`, { kind: "failed" });
  }
  const events = [];
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  if (delta.reasoning_content || delta.content || delta.tool_calls?.length) {
    events.push({
      type: "delta",
      reasoning: delta.reasoning_content ?? "",
      content: delta.content ?? "",
      calls: delta.tool_calls ?? [],
    });
  }
  if (chunk.usage) events.push({ type: "usage", usage: chunk.usage, model: chunk.model });
  if (choice?.finish_reason) events.push({ type: "finish", reason: choice.finish_reason });
  return events;
}
