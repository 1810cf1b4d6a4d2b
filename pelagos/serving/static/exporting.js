// A chat as a file: Markdown to read, JSON to keep or to bring back.

import { newId, pathTo } from "./conversation.js";

const FORMAT = "pelagos-chat";

/** The branch that is shown, with the thinking folded and the files as fenced blocks. */
export function toMarkdown(chat, messages, texts) {
  const parts = [`# ${chat.title}`];
  if (chat.system.trim()) parts.push("## System", chat.system.trim());
  for (const message of pathTo(messages, chat.leaf)) {
    if (message.role === "user") {
      parts.push("## You");
      for (const file of message.files) parts.push(`**${file.name}**`, fenced(texts.get(file.id) ?? ""));
      if (message.text) parts.push(message.text);
    } else {
      parts.push(`## ${message.model ?? "Model"}`);
      if (message.reasoning) {
        parts.push(`<details><summary>Thinking</summary>\n\n${fenced(message.reasoning)}\n\n</details>`);
      }
      if (message.content) parts.push(message.content.trim());
      for (const call of message.calls ?? []) parts.push(`Tool call \`${call.name}\``, fenced(call.arguments));
      if (message.status !== "done") parts.push(`*(this answer is not complete: ${message.status})*`);
    }
  }
  return `${parts.join("\n\n")}\n`;
}

/** A fence longer than any in the text, so that the text cannot end it. */
function fenced(text) {
  const longest = Math.max(2, ...(text.match(/`{3,}/g) ?? []).map((run) => run.length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}

export function toJson(chat, messages, texts) {
  const files = [...messages.values()].flatMap((message) => message.files ?? []);
  return JSON.stringify(
    {
      format: FORMAT,
      version: 1,
      chat: { title: chat.title, created: chat.created, leaf: chat.leaf, system: chat.system },
      messages: [...messages.values()].map(({ chat: _, ...message }) => message),
      files: files.map(({ id, name }) => ({ id, name, text: texts.get(id) ?? "" })),
    },
    null,
    2,
  );
}

/** Records for the store out of an exported text, with ids of their own; throws an Error that says what is wrong. */
export function fromJson(text) {
  let given;
  try {
    given = JSON.parse(text);
  } catch {
    throw new Error("That file is not JSON.");
  }
  const list = (value) => (Array.isArray(value) ? value : []);
  if (given?.format !== FORMAT || given.version !== 1 || !Array.isArray(given.messages)) {
    throw new Error("That file is not a chat that this page exported.");
  }
  const id = newId();
  const ids = new Map();
  const fresh = (old) => {
    if (!ids.has(old)) ids.set(old, newId());
    return ids.get(old);
  };
  const messages = given.messages.map((message) => importedMessage(message, id, fresh));
  const known = new Set(messages.map((message) => message.id));
  for (const message of messages) if (!known.has(message.parent)) message.parent = null;
  const leaf = given.chat?.leaf !== null && known.has(ids.get(given.chat?.leaf)) ? ids.get(given.chat.leaf) : null;
  const now = Date.now();
  const chat = {
    id,
    title: string(given.chat?.title).slice(0, 200) || "Imported chat",
    named: true,
    created: number(given.chat?.created) ?? now,
    updated: now,
    leaf: leaf ?? messages.at(-1)?.id ?? null,
    system: string(given.chat?.system),
    draft: "",
  };
  const files = list(given.files).map((file) => ({ id: fresh(file?.id), chat: id, text: string(file?.text) }));
  return { chats: [chat], messages, files };
}

const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (typeof value === "number" && Number.isFinite(value) ? value : null);

// Only known fields of the right type come in: an imported file is as untrusted as any other.
function importedMessage(message, chat, fresh) {
  const common = {
    id: fresh(message?.id),
    chat,
    parent: message?.parent == null ? null : fresh(message.parent),
    created: number(message?.created) ?? Date.now(),
  };
  if (message?.role === "user") {
    const files = (Array.isArray(message.files) ? message.files : []).map((file) => ({
      id: fresh(file?.id),
      name: string(file?.name),
      size: number(file?.size) ?? 0,
      tokens: number(file?.tokens),
    }));
    return { ...common, role: "user", text: string(message.text), files };
  }
  if (message?.role !== "assistant") throw new Error("A message of that file is of neither the user nor the assistant.");
  const calls = (Array.isArray(message.calls) ? message.calls : []).map((call) => ({
    name: string(call?.name),
    arguments: string(call?.arguments),
  }));
  const usage = message.usage && typeof message.usage === "object" ? message.usage : null;
  const times = message.times && typeof message.times === "object" ? message.times : null;
  return {
    ...common,
    role: "assistant",
    model: string(message.model) || null,
    thinking: string(message.thinking) || "off",
    reasoning: string(message.reasoning),
    content: string(message.content),
    calls,
    status: ["done", "stopped", "broken", "failed"].includes(message.status) ? message.status : "broken",
    error: null,
    finish: string(message.finish) || null,
    usage: numbersOnly(usage),
    times: numbersOnly(times),
  };
}

function numbersOnly(value) {
  if (value === null) return null;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, inner]) => number(inner) !== null || (inner && typeof inner === "object" && !Array.isArray(inner)))
      .map(([name, inner]) => [name, number(inner) ?? numbersOnly(inner)]),
  );
}
