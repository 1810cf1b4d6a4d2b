import assert from "node:assert/strict";
import { test } from "node:test";

delete globalThis.BroadcastChannel; // in node an open one keeps the process alive

const at = (name) => import(`../../../pelagos/serving/static/${name}.js`);
const { EventParser } = await at("sse");
const { streamChat, listModels, ServerError } = await at("api");
const conversation = await at("conversation");
const { fromJson, toJson, toMarkdown } = await at("exporting");
const { textOf } = await at("files");
const format = await at("format");
const { MemoryStore, parseSettings, DEFAULTS } = await at("store");
const { chatsWith } = await at("sidebar");
const { Answer } = await at("answering");
const { Chats } = await at("chats");

// --- server-sent events ---

test("events come out the same, however the text is cut", () => {
  const text = 'data: {"a":1}\n\n: reading 1 of 2 tokens\n\ndata:x\r\ndata: y\r\n\r\nevent: z\rdata: w\r\rid: 3\n\n';
  const whole = new EventParser().push(text);
  assert.deepEqual(whole, [{ data: '{"a":1}' }, { comment: "reading 1 of 2 tokens" }, { data: "x\ny" }, { data: "w" }]);
  for (let cut = 0; cut <= text.length; cut += 1) {
    const parser = new EventParser();
    assert.deepEqual([...parser.push(text.slice(0, cut)), ...parser.push(text.slice(cut))], whole, `cut at ${cut}`);
  }
  const parser = new EventParser();
  assert.deepEqual([...text].flatMap((char) => parser.push(char)), whole);
});

// --- the API ---

function serve(t, status, body, headers = {}) {
  const asked = [];
  t.mock.method(globalThis, "fetch", async (path, options) => {
    asked.push({ path, ...options });
    if (body instanceof Error) throw body;
    return new Response(body, { status, headers });
  });
  return asked;
}

async function events(stream) {
  const found = [];
  for await (const event of stream) found.push(event);
  return found;
}

const line = (value) => `data: ${JSON.stringify(value)}\n\n`;
const delta = (fields) => line({ choices: [{ delta: fields }] });
const END = line({ choices: [{ delta: {}, finish_reason: "stop" }], usage: { completion_tokens: 2 }, model: "m" }) + "data: [DONE]\n\n";

test("a stream becomes events", async (t) => {
  const asked = serve(t, 200, `: reading 5 of 9 tokens\n\n: keep-alive\n\n${delta({ role: "assistant", reasoning_content: "" })}${delta({ reasoning_content: "r" })}${delta({ content: "c" })}${END}`);
  const found = await events(streamChat({ model: "m", messages: [] }, "secret"));
  assert.deepEqual(found.map((event) => event.type), ["reading", "alive", "delta", "delta", "usage", "finish"]);
  assert.deepEqual(found[0], { type: "reading", read: 5, total: 9 });
  assert.equal(asked[0].path, "v1/chat/completions"); // relative: a proxy may serve the page under a folder
  assert.equal(asked[0].headers.Authorization, "Bearer secret");
  assert.deepEqual(JSON.parse(asked[0].body), { model: "m", messages: [], stream: true, stream_options: { include_usage: true } });
});

for (const [what, status, body, kind, words] of [
  ["no server", 0, new TypeError("fetch failed"), "offline", /does not answer/],
  ["a refused field", 400, '{"error":{"message":"temperature must be from 0 to 2"}}', "refused", /^temperature must be from 0 to 2\. Try again in 3 s\.$/],
  ["a bad key", 401, '{"error":{"message":"no key"}}', "refused", /API key.*It says: no key/],
  ["a full queue", 429, "{}", "refused", /no room.*Try again in 3 s\.$/],
  ["a proxy's page", 502, "<html>", "refused", /behind the proxy/],
  ["an unknown status", 418, "", "refused", /status 418/],
  ["a cut stream", 200, delta({ content: "x" }), "broken", /ended before the answer/],
  ["an error inside", 200, line({ error: { message: "out of memory" } }), "failed", /in the middle: out of memory/],
  ["no JSON", 200, "data: {oops\n\n", "failed", /not JSON/],
]) {
  test(`${what} is told in words`, async (t) => {
    serve(t, status, body, { "Retry-After": "3" });
    await assert.rejects(events(streamChat({}, "")), (error) => error instanceof ServerError && error.kind === kind && words.test(error.message));
  });
}

test("models have their context length, or none", async (t) => {
  serve(t, 200, '{"data":[{"id":"a","context_length":9},{"id":"b"}]}');
  assert.deepEqual(await listModels(""), [{ id: "a", contextLength: 9 }, { id: "b", contextLength: null }]);
});

// --- chats ---

const user = (id, parent, text = id, files = []) => ({ id, chat: "c", parent, role: "user", created: Number(id.slice(1)), text, files });
const answer = (id, parent, fields = {}) => ({ id, chat: "c", parent, role: "assistant", created: Number(id.slice(1)), content: id, reasoning: "", calls: [], status: "done", times: {}, usage: null, ...fields });
const tree = () => new Map([user("u1", null), answer("a2", "u1"), answer("a3", "u1"), user("u4", "a2"), user("u5", "a2")].map((m) => [m.id, m]));

test("a chat is a tree, and a path leads through it", () => {
  const messages = tree();
  assert.deepEqual(conversation.pathTo(messages, "u4").map((m) => m.id), ["u1", "a2", "u4"]);
  assert.deepEqual(conversation.versions(messages, messages.get("a3")).map((m) => m.id), ["a2", "a3"]);
  assert.equal(conversation.newestLeaf(messages, "u1"), "a3");
  assert.equal(conversation.newestLeaf(messages, "a2"), "u5");
  messages.get("u1").parent = "u5"; // a damaged store must not hang the page
  assert.equal(conversation.pathTo(messages, "u4").length, 4);
  assert.ok(conversation.newestLeaf(messages, "u1"));
});

test("a request has files before the question, and no reasoning, no empty answers", () => {
  const path = [user("u1", null, "What is it?", [{ id: "f", name: "a.txt" }]), answer("a2", "u1", { reasoning: "hm" }), answer("a3", "u1", { content: " " }), user("u4", "a2", "And?")];
  assert.deepEqual(conversation.requestMessages(path, "Be brief.", new Map([["f", "text\n"]])), [
    { role: "system", content: "Be brief." },
    { role: "user", content: "[file name]: a.txt\n[file content begin]\ntext\n\n[file content end]\nWhat is it?" },
    { role: "assistant", content: "a2" },
    { role: "user", content: "And?" },
  ]);
  const open = conversation.requestMessages(path.slice(0, 1), " ", new Map(), answer("a9", "u1", { reasoning: "r" })).at(-1);
  assert.deepEqual(open, { role: "assistant", content: "a9", prefix: true, reasoning_content: "r" });
});

test("settings that are not set are left to the server", () => {
  const body = (fields) => conversation.requestBody([], { ...DEFAULTS, ...fields }, "m");
  assert.deepEqual(body({ thinking: "off" }), { model: "m", messages: [], thinking: { type: "disabled" } });
  assert.deepEqual(body({ thinking: "max", temperature: 0, maxTokens: 5 }), {
    ...{ model: "m", messages: [], thinking: { type: "enabled" }, reasoning_effort: "max" },
    ...{ temperature: 0, max_tokens: 5 },
  });
});

test("damaged settings have their defaults", () => {
  for (const text of [null, "", "{", "7", "null", "[]", '{"temperature":9,"thinking":"x","key":5,"maxTokens":1.5,"theme":{}}']) {
    assert.deepEqual(parseSettings(text), { ...DEFAULTS }, text);
  }
  assert.equal(parseSettings('{"temperature":0}').temperature, 0);
});

test("tool calls are put together", () => {
  let calls = conversation.addCalls([], [{ index: 0, function: { name: "f", arguments: "" } }]);
  calls = conversation.addCalls(calls, [{ index: 0, function: { arguments: '{"a"' } }, { index: 1, function: { name: "g" } }]);
  calls = conversation.addCalls(calls, [{ index: 0, function: { arguments: ":1}" } }]);
  assert.deepEqual(calls, [{ name: "f", arguments: '{"a":1}' }, { name: "g", arguments: "" }]);
});

test("figures: the speed is that of the tokens after the first", () => {
  const usage = { prompt_tokens: 10, completion_tokens: 21, prompt_tokens_details: { cached_tokens: 4 }, completion_tokens_details: { reasoning_tokens: 3 }, pelagos: { note: "n" } };
  assert.deepEqual(conversation.figures({ usage, times: { first: 1, total: 3 } }), { prompt: 10, cached: 4, generated: 21, reasoning: 3, first: 1, rate: 10, note: "n" });
  assert.equal(conversation.figures({ usage: { prompt_tokens: 1, completion_tokens: 1 }, times: { first: 1, total: 1 } }).rate, null);
  assert.equal(conversation.figures({ usage: null }), null);
});

test("a chat that is exported comes back", () => {
  const messages = tree();
  messages.get("u1").files = [{ id: "f1", name: "a.py", size: 3, tokens: 1 }];
  const chat = { id: "c", title: "T", created: 5, leaf: "u4", system: "S" };
  const texts = new Map([["f1", "x = '```'"]]);
  const back = fromJson(toJson(chat, messages, texts));
  assert.equal(back.messages.length, 5);
  const map = new Map(back.messages.map((m) => [m.id, m]));
  const path = conversation.pathTo(map, back.chats[0].leaf);
  assert.deepEqual(path.map((m) => m.text ?? m.content), ["u1", "a2", "u4"]);
  assert.ok(path.every((m) => m.chat === back.chats[0].id && !messages.has(m.id)));
  assert.equal(back.files[0].id, path[0].files[0].id);
  assert.equal(back.files[0].text, "x = '```'");
  const markdown = toMarkdown(chat, messages, texts);
  assert.match(markdown, /^# T\n\n## System\n\nS\n\n## You\n\n\*\*a\.py\*\*\n\n````\nx = '```'\n````\n\nu1\n\n## Model\n\na2/);
});

test("what is no exported chat is refused, and odd fields are dropped", () => {
  for (const text of ["", "{", "[]", '{"format":"pelagos-chat"}', '{"format":"pelagos-chat","version":1,"messages":[{"role":"root"}]}']) assert.throws(() => fromJson(text), /That file|of that file/, text);
  const odd = { format: "pelagos-chat", version: 1, chat: { title: 7, leaf: "x" }, messages: [{ role: "assistant", content: { html: 1 }, calls: [7], status: "streaming", usage: { a: "x", b: 1 }, evil: 1, parent: "nobody" }] };
  const [message] = fromJson(JSON.stringify(odd)).messages;
  assert.deepEqual([message.content, message.status, message.usage, message.evil, message.parent], ["", "broken", { b: 1 }, undefined, null]);
});

// --- files ---

test("text files are read, others are refused in a sentence", () => {
  const bytes = (...list) => new Uint8Array(list);
  assert.equal(textOf("a", new TextEncoder().encode("é\r\n中")).text, "é\n中");
  assert.equal(textOf("a", bytes(0xef, 0xbb, 0xbf, 0x61)).text, "a");
  assert.equal(textOf("a", bytes(0xff, 0xfe, 0x61, 0)).text, "a");
  assert.equal(textOf("a", bytes(0xfe, 0xff, 0, 0x61)).text, "a");
  for (const [list, words] of [[[], /empty/], [[0x25, 0x50, 0x44, 0x46], /PDF/], [[0x50, 0x4b, 3, 4], /ZIP/], [[0x89, 0x50, 0x4e, 0x47], /picture/], [[0x61, 0, 0x62], /not text/], [[0xc3, 0x28], /not text/], [[0x1f, 0x8b, 8], /compressed/]]) {
    const { problem } = textOf("x.bin", bytes(...list));
    assert.match(problem, words);
    assert.match(problem, /^x\.bin .*\.$/);
  }
});

// --- words and numbers ---

test("numbers are easy to read", () => {
  assert.deepEqual([0.04, 9.94, 9.96, 59.6, 125, 7300].map(format.duration), ["0.0 s", "9.9 s", "10 s", "1 min 0 s", "2 min 5 s", "2 h 1 min"]);
  assert.deepEqual([0.0123, 9.96, 99.6, 1234].map(format.rate), ["0.012 tokens/s", "10 tokens/s", "100 tokens/s", "1234 tokens/s"]);
  assert.deepEqual([999, 1000, 99_949, 999_600, 5e9].map(format.bytes), ["999 B", "1.0 kB", "100 kB", "1.0 MB", "5.0 GB"]);
  assert.equal(format.tokens(1), "1 token");
  assert.equal(format.titleOf("## Hello\nmore"), "Hello");
  assert.equal(format.titleOf("word ".repeat(30)).length <= 61, true);
  assert.equal(format.titleOf("  "), "New chat");
  const now = new Date(2026, 10, 24, 9).getTime();
  const days = (number) => now - number * 86_400_000;
  assert.deepEqual([days(0), days(0.5), days(1), days(5), days(20), days(90)].map((time) => format.age(time, now)), ["Today", "Yesterday", "Yesterday", "Last 7 days", "Last 30 days", "Older"]);
});

test("search finds words anywhere in a message, not spread over several", () => {
  const messages = [{ chat: "a", text: "Red Fox" }, { chat: "b", content: "red", reasoning: "fox" }, { chat: "c", content: "red" }, { chat: "c", content: "fox" }, { chat: "d", text: "", files: [{ name: "redfox.txt" }] }];
  assert.deepEqual([...chatsWith(messages, ["red", "fox"])], ["a", "b", "d"]);
});

// --- answers ---

function streaming(t, parts, { breaks = false } = {}) {
  t.mock.method(globalThis, "fetch", async (path, { signal }) => {
    let place = 0;
    const body = new ReadableStream({
      async pull(controller) {
        if (place < parts.length) {
          await new Promise((resolve) => setTimeout(resolve, 1));
          controller.enqueue(new TextEncoder().encode(parts[place++]));
        } else if (breaks) controller.error(new TypeError("network error"));
        else if (parts.at(-1).includes("[DONE]")) controller.close();
        // else it stays open until the signal
      },
      start(controller) {
        signal?.addEventListener("abort", () => controller.error(new DOMException("stopped", "AbortError")));
      },
    });
    return new Response(body, { status: 200 });
  });
}

async function opened(t, parts, options) {
  streaming(t, parts, options);
  const store = new MemoryStore();
  const chats = new Chats(store, { ...DEFAULTS }, () => {});
  return { store, chats };
}

test("an answer fills its message and is kept", async (t) => {
  const { store, chats } = await opened(t, [delta({ reasoning_content: "th" }), delta({ reasoning_content: "ink" }), delta({ content: "an" }), delta({ content: "swer" }), END]);
  await chats.send("Question", [{ id: "f", name: "n", size: 1, tokens: 1, text: "file" }], "m");
  const [chat] = await store.chats();
  const messages = await store.messages(chat.id);
  const kept = messages.find((message) => message.role === "assistant");
  assert.deepEqual([kept.reasoning, kept.content, kept.status, kept.finish, kept.model], ["think", "answer", "done", "stop", "m"]);
  assert.ok(kept.times.first >= 0 && kept.times.thinking >= 0 && kept.times.total >= kept.times.first);
  assert.equal(chat.title, "Question");
  assert.equal((await store.files(chat.id))[0].text, "file");
  await chats.again(kept, "m");
  assert.equal(conversation.versions(chats.messages, kept).length, 2);
  await chats.turn(chats.path.at(-1), -1);
  assert.equal(chats.current.leaf, kept.id);
});

test("nothing is lost when the connection breaks", async (t) => {
  const { store, chats } = await opened(t, [delta({ content: "half " })], { breaks: true });
  await chats.send("Question", [], "m");
  const kept = (await store.messages(chats.current.id)).find((message) => message.role === "assistant");
  assert.deepEqual([kept.content, kept.status, kept.error.message], ["half ", "broken", "The connection broke."]);
  streaming(t, [delta({ content: "and half" }), END]);
  await chats.proceed(chats.messages.get(kept.id), "m");
  const whole = (await store.messages(chats.current.id)).find((message) => message.role === "assistant");
  assert.deepEqual([whole.content, whole.status, whole.error], ["half and half", "done", null]);
});

test("a chat goes on where the browser keeps nothing, and the user is told", async (t) => {
  streaming(t, [delta({ content: "answer" }), END]);
  const store = new MemoryStore();
  store.put = async () => {
    throw new DOMException("full", "QuotaExceededError");
  };
  const told = [];
  const chats = new Chats(store, { ...DEFAULTS }, () => {}, (error) => told.push(error.name));
  await chats.send("Question", [], "m");
  assert.equal(chats.path.at(-1).content, "answer");
  assert.equal(told[0], "QuotaExceededError");
});

test("a stopped answer keeps what came", async (t) => {
  const { chats } = await opened(t, [delta({ content: "some" })]);
  const done = chats.send("Question", [], "m");
  while (!chats.answer?.message.content) await new Promise((resolve) => setTimeout(resolve, 1));
  chats.answer.stop();
  await done;
  const message = chats.path.at(-1);
  assert.deepEqual([message.content, message.status], ["some", "stopped"]);
  assert.equal(chats.answers.size, 0);
});

test("an answer whose page has gone is marked as cut when the chat is opened", async (t) => {
  const { store, chats } = await opened(t, [END]);
  await store.put({ chats: [{ id: "c", title: "t", leaf: "a2", system: "", draft: "" }], messages: [user("u1", null), answer("a2", "u1", { status: "streaming" })] });
  await chats.load();
  assert.equal(await chats.open("nobody"), false);
  await chats.open("c");
  await new Promise((resolve) => setTimeout(resolve, 600));
  assert.equal((await store.messages("c")).find((message) => message.id === "a2").status, "broken");
});

test("a deleted chat stays deleted, also with an answer on its way", async (t) => {
  const { store, chats } = await opened(t, [delta({ content: "some" })]);
  const done = chats.send("Question", [], "m");
  while (!chats.answer?.message.content) await new Promise((resolve) => setTimeout(resolve, 1));
  await chats.remove(chats.current);
  await done;
  assert.deepEqual(await store.chats(), []);
  assert.deepEqual(await store.allMessages(), []);
});

test("two tabs add to one chat and lose nothing", async (t) => {
  const { store, chats } = await opened(t, [delta({ content: "one" }), END]);
  await chats.send("First", [], "m");
  const other = new Chats(store, { ...DEFAULTS }, () => {});
  await other.load();
  await other.open(chats.current.id);
  await Promise.all([chats.send("Mine", [], "m"), other.send("Theirs", [], "m")]);
  const texts = (await store.messages(chats.current.id)).filter((message) => message.role === "user").map((message) => message.text);
  assert.deepEqual(texts.sort(), ["First", "Mine", "Theirs"]);
});

test("an answer tells its first save within a second or so", async (t) => {
  let saves = 0;
  streaming(t, [...Array(30).keys()].map(() => delta({ content: "x" })).concat(END));
  t.mock.method(performance, "now", (() => { let time = 0; return () => (time += 400); })());
  await new Answer({ message: answer("a1", null, { content: "" }), body: {}, key: "", onChange() {}, onSave: async () => { saves += 1; } }).run();
  assert.ok(saves >= 5, `${saves} saves`);
});
