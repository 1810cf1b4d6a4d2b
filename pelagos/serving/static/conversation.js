// A chat is a tree of messages: editing or asking again adds a sibling, and nothing that was said is lost.
//
// message: {id, chat, parent: id | null, role: "user", created, text, files: [{id, name, size, tokens}]}
//        | {id, chat, parent, role: "assistant", created, model, thinking, reasoning, content, calls: [{name, arguments}],
//           status: "streaming" | "done" | "stopped" | "broken" | "failed", error, finish, usage, times}
// chat:    {id, title, named, created, updated, leaf: id | null, system, draft}

/** Random, sortable by time. (crypto.randomUUID is missing on pages over plain http.) */
export function newId() {
  const random = crypto.getRandomValues(new Uint8Array(8));
  return Date.now().toString(36) + [...random].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The messages from the first one to `leaf`. */
export function pathTo(messages, leaf) {
  const path = [];
  const seen = new Set();
  for (let id = leaf; id !== null && messages.has(id) && !seen.has(id); id = messages.get(id).parent) {
    seen.add(id);
    path.unshift(messages.get(id));
  }
  return path;
}

/** All versions of a message, oldest first: those with its parent. */
export function versions(messages, message) {
  return [...messages.values()]
    .filter((other) => other.parent === message.parent && other.role === message.role)
    .sort((a, b) => a.created - b.created || (a.id < b.id ? -1 : 1));
}

/** The end of the newest branch behind a message. */
export function newestLeaf(messages, id) {
  const seen = new Set();
  for (;;) {
    seen.add(id);
    const children = [...messages.values()].filter((message) => message.parent === id && !seen.has(message.id));
    if (!children.length) return id;
    id = children.reduce((newest, child) => (child.created >= newest.created ? child : newest)).id;
  }
}

/** What the model reads for a user's message: the files first, because a long text is best followed by the question. */
export function promptText(message, texts) {
  const files = message.files.map(({ id, name }) => {
    const text = texts.get(id) ?? "(this file is not here any more)";
    return `[file name]: ${name}\n[file content begin]\n${text}\n[file content end]\n`;
  });
  return files.join("") + message.text;
}

/**
 * The messages of a request. Reasoning of earlier turns is left out, as the prompt format has it; so is an answer
 * without text, which servers refuse. With `continued` the last answer is left open and the model goes on with it.
 */
export function requestMessages(path, system, texts, continued = null) {
  const list = system.trim() ? [{ role: "system", content: system }] : [];
  for (const message of path) {
    if (message.role === "user") list.push({ role: "user", content: promptText(message, texts) });
    else if (message.content.trim()) list.push({ role: "assistant", content: message.content });
  }
  if (continued) {
    const open = { role: "assistant", content: continued.content, prefix: true };
    if (continued.reasoning) open.reasoning_content = continued.reasoning;
    list.push(open);
  }
  return list;
}

/** The fields of a request that the settings decide. What is not set is left to the server. */
export function requestBody(messages, settings, model) {
  const body = { model, messages, thinking: { type: settings.thinking === "off" ? "disabled" : "enabled" } };
  if (settings.thinking !== "off") body.reasoning_effort = settings.thinking;
  if (settings.temperature !== null) body.temperature = settings.temperature;
  if (settings.maxTokens !== null) body.max_tokens = settings.maxTokens;
  return body;
}

/** Adds pieces of a tool call to the calls so far: the first has the name, the others more of the arguments. */
export function addCalls(calls, pieces) {
  const grown = calls.map((call) => ({ ...call }));
  for (const { index = 0, function: part = {} } of pieces) {
    grown[index] ??= { name: "", arguments: "" };
    grown[index].name += part.name ?? "";
    grown[index].arguments += part.arguments ?? "";
  }
  return grown;
}

/** The numbers under an answer, null where the server did not say. */
export function figures(message) {
  const { usage, times } = message;
  if (!usage) return null;
  const generated = usage.completion_tokens ?? 0;
  // the first token comes with the prompt; the others take the time after it
  const seconds = times?.total != null && times?.first != null ? times.total - times.first : null;
  return {
    prompt: usage.prompt_tokens ?? 0,
    cached: usage.prompt_tokens_details?.cached_tokens ?? usage.prompt_cache_hit_tokens ?? null,
    generated,
    reasoning: usage.completion_tokens_details?.reasoning_tokens ?? null,
    first: times?.first ?? null,
    rate: seconds > 0 && generated > 1 ? (generated - 1) / seconds : null,
    note: typeof usage.pelagos?.note === "string" ? usage.pelagos.note : null,
  };
}
