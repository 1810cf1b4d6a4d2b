// The chats of this page: what is open, what is being answered, and all changes to them. It draws nothing.

import { Answer } from "./answering.js";
import { newestLeaf, newId, pathTo, requestBody, requestMessages, versions } from "./conversation.js";
import { fromJson } from "./exporting.js";
import { titleOf } from "./format.js";

const ASK_MS = 400; // for other tabs to say that an answer is theirs

/**
 * `current`: the open chat, not stored before its first message. `messages`: Map of its messages by id. `texts`: Map of
 * its files' texts. `onChange(message | null)`: null where more than that message's text has changed. `onProblem(error)`:
 * the browser did not keep something; the chat goes on without.
 */
export class Chats {
  all = new Map();
  messages = new Map();
  texts = new Map();
  answers = new Map(); // of this tab, by message id
  #channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("pelagos") : null;
  #claimed = new Set(); // messages that another tab writes

  constructor(store, settings, onChange, onProblem = () => {}) {
    Object.assign(this, { store, settings, onChange, onProblem });
    this.current = this.#fresh();
    this.#channel?.addEventListener("message", (event) => this.#hear(event.data));
  }

  async load() {
    for (const chat of await this.store.chats()) this.all.set(chat.id, chat);
  }

  get path() {
    return pathTo(this.messages, this.current.leaf);
  }

  /** The answer of this tab at the end of the open chat, if one is being written. */
  get answer() {
    return this.answers.get(this.current.leaf) ?? null;
  }

  /** Chats that an answer of this tab is for. */
  get writing() {
    return new Set([...this.answers.values()].map((answer) => answer.message.chat));
  }

  about(message) {
    return {
      answer: this.answers.get(message.id) ?? null,
      versions: versions(this.messages, message),
      isLast: message.id === this.current.leaf,
    };
  }

  startNew() {
    this.current = this.#fresh();
    this.messages = new Map();
    this.texts = new Map();
    this.onChange(null);
  }

  /** Opens a chat; false if there is none of that id. */
  async open(id) {
    const chat = await this.store.chat(id);
    if (!chat) return false;
    const [messages, files] = [await this.store.messages(id), await this.store.files(id)];
    this.current = chat;
    this.all.set(id, chat);
    this.messages = new Map(messages.map((message) => [message.id, message]));
    for (const answer of this.answers.values()) {
      if (answer.message.chat === id) this.messages.set(answer.message.id, answer.message);
    }
    this.texts = new Map(files.map((file) => [file.id, file.text]));
    this.onChange(null);
    this.#endLost();
    return true;
  }

  /** Adds a user's message with its files and asks for the answer. `parent`: of an edited message, else the end. */
  async send(text, files, model, parent = this.current.leaf) {
    const chat = this.current;
    if (!this.all.has(chat.id)) {
      if (!chat.named) chat.title = titleOf(text || files[0].name);
      this.all.set(chat.id, chat);
    }
    const message = {
      ...{ id: newId(), chat: chat.id, parent, role: "user", created: Date.now(), text },
      files: files.map(({ id, name, size, tokens }) => ({ id, name, size, tokens })),
    };
    this.messages.set(message.id, message);
    for (const file of files) this.texts.set(file.id, file.text);
    Object.assign(chat, { leaf: message.id, draft: "" });
    const records = files.map((file) => ({ id: file.id, chat: chat.id, text: file.text }));
    await this.#save({ chats: [chat], messages: [message], files: records });
    return this.#answer(message.id, model);
  }

  /** Another answer beside this one. */
  async again(message, model) {
    return this.#answer(message.parent, model);
  }

  /** Goes on with an answer that was cut. */
  async proceed(message, model) {
    const path = pathTo(this.messages, message.parent);
    const messages = requestMessages(path, this.current.system, this.texts, message);
    const answered = { ...this.settings, thinking: message.thinking };
    await this.#run(message, requestBody(messages, answered, model));
  }

  async #answer(parent, model) {
    const message = {
      ...{ id: newId(), chat: this.current.id, parent, role: "assistant", created: Date.now(), model },
      ...{ thinking: this.settings.thinking, reasoning: "", content: "", calls: [], status: "streaming" },
      ...{ error: null, finish: null, usage: null, times: {} },
    };
    const path = pathTo(this.messages, parent);
    const body = requestBody(requestMessages(path, this.current.system, this.texts), this.settings, model);
    this.messages.set(message.id, message);
    this.current.leaf = message.id;
    await this.#run(message, body);
  }

  async #run(message, body) {
    const chat = this.current;
    const answer = new Answer({
      message,
      body,
      key: this.settings.key,
      onChange: () => this.onChange(message),
      onSave: () => this.#save({ chats: [chat], messages: [message] }),
    });
    this.answers.set(message.id, answer);
    const running = answer.run();
    this.onChange(null);
    await this.#save({ chats: [chat], messages: [message] });
    await running;
    this.answers.delete(message.id);
    this.onChange(null);
  }

  /** Shows the version before or after a message, with the newest that follows it. */
  async turn(message, step) {
    const all = versions(this.messages, message);
    const other = all[all.findIndex((version) => version.id === message.id) + step];
    if (!other) return;
    this.current.leaf = newestLeaf(this.messages, other.id);
    await this.change(this.current, {});
  }

  /** Changes fields of a chat, such as its title; a chat without messages is not stored yet. */
  async change(chat, fields) {
    Object.assign(chat, fields);
    if (this.current.id === chat.id && this.current !== chat) Object.assign(this.current, fields);
    if (this.all.has(chat.id)) await this.#save({ chats: [chat] }, false);
    this.onChange(null);
  }

  async remove(chat) {
    for (const answer of this.answers.values()) if (answer.message.chat === chat.id) answer.stop();
    this.all.delete(chat.id);
    await this.store.remove(chat.id);
    this.#tell({ changed: chat.id });
    if (this.current.id === chat.id) this.startNew();
    else this.onChange(null);
  }

  async bringIn(text) {
    const records = fromJson(text);
    await this.store.put(records);
    const [chat] = records.chats;
    this.all.set(chat.id, chat);
    this.#tell({ changed: chat.id });
    return chat.id;
  }

  /** Writes what is being answered right now; for the moment before the page goes. */
  saveNow() {
    for (const { message } of this.answers.values()) this.store.put({ messages: [message] });
  }

  #fresh() {
    const now = Date.now();
    return {
      ...{ id: newId(), title: "New chat", named: false, created: now, updated: now },
      ...{ leaf: null, system: this.settings.system, draft: "" },
    };
  }

  // A chat that was deleted meanwhile stays deleted.
  async #save(records, touch = true) {
    const [chat] = records.chats;
    if (!this.all.has(chat.id)) return;
    if (touch) chat.updated = Date.now();
    try {
      await this.store.put(records);
    } catch (error) {
      this.onProblem(error);
    }
    this.#tell({ changed: chat.id });
  }

  #tell(news) {
    this.#channel?.postMessage(news);
  }

  async #hear({ changed, whose, mine }) {
    if (whose !== undefined && this.answers.has(whose)) this.#tell({ mine: whose });
    if (mine !== undefined) this.#claimed.add(mine);
    if (changed === undefined) return;
    const chat = await this.store.chat(changed);
    if (chat) this.all.set(changed, chat);
    else this.all.delete(changed);
    const isOpen = this.current.id === changed;
    if (isOpen && !chat) this.startNew();
    else if (isOpen && !this.writing.has(changed)) await this.#refresh(changed);
    this.onChange(null);
  }

  // Another tab has changed the open chat: take its messages and keep our place in it.
  async #refresh(id) {
    const [messages, files] = [await this.store.messages(id), await this.store.files(id)];
    if (this.current.id !== id) return;
    const leaf = this.current.leaf;
    for (const message of messages) this.messages.set(message.id, message);
    for (const file of files) this.texts.set(file.id, file.text);
    const stored = this.all.get(id);
    this.current = { ...stored, draft: this.current.draft, leaf: leaf === null ? stored.leaf : newestLeaf(this.messages, leaf) };
    this.all.set(id, this.current);
  }

  // An answer without an end that no tab receives was cut off with its page.
  async #endLost() {
    const lost = [...this.messages.values()].filter((message) => message.status === "streaming" && !this.answers.has(message.id));
    if (!lost.length) return;
    for (const message of lost) this.#tell({ whose: message.id });
    await new Promise((resolve) => setTimeout(resolve, ASK_MS));
    const ended = lost.filter((message) => !this.#claimed.has(message.id));
    for (const message of ended) message.status = "broken";
    if (!ended.length) return;
    await this.store.put({ messages: ended });
    this.onChange(null);
  }
}
