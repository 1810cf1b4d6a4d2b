// One answer while it is written: it fills its message with what the server sends, and keeps it safe on the way.

import { ServerError, streamChat } from "./api.js";
import { addCalls } from "./conversation.js";

const SAVE_SECONDS = 1;

/**
 * `message` is changed in place. `onChange` is called at each change, `onSave` about once a second and at the end, and
 * returns a promise. `reading` is {read, total, started} while the prompt is read; `silence` counts the seconds since
 * the server gave its last sign of life.
 */
export class Answer {
  reading = null;
  started = performance.now();
  #abort = new AbortController();
  #heard = performance.now();
  #saved = performance.now();
  #thinkingFrom = null;

  constructor({ message, body, key, onChange, onSave }) {
    Object.assign(this, { message, body, key, onChange, onSave });
  }

  get silence() {
    return (performance.now() - this.#heard) / 1000;
  }

  get elapsed() {
    return (performance.now() - this.started) / 1000;
  }

  /** Seconds of thinking so far; null before and without it. */
  get thinkingSeconds() {
    if (this.#thinkingFrom === null) return null;
    return this.message.times.thinking ?? (performance.now() - this.#thinkingFrom) / 1000;
  }

  stop() {
    this.#abort.abort();
  }

  /** Never throws: however it ends, the message says so in `status` and `error`. */
  async run() {
    const { message } = this;
    Object.assign(message, { status: "streaming", error: null, finish: null, usage: null, times: {} });
    try {
      for await (const event of streamChat(this.body, this.key, this.#abort.signal)) {
        this.#heard = performance.now();
        this.#take(event);
        this.onChange();
        if (performance.now() - this.#saved > SAVE_SECONDS * 1000) await this.#save();
      }
      message.status = "done";
    } catch (error) {
      if (error.name === "AbortError") message.status = "stopped";
      else this.#fail(error);
    }
    this.#endThinking();
    message.times.total = this.elapsed;
    this.reading = null;
    this.onChange();
    await this.#save();
  }

  #take(event) {
    const { message } = this;
    if (event.type === "reading") {
      this.reading = { read: event.read, total: event.total, started: this.reading?.started ?? performance.now() };
    } else if (event.type === "delta") {
      this.reading = null;
      message.times.first ??= this.elapsed;
      if (event.reasoning) {
        this.#thinkingFrom ??= performance.now();
        message.reasoning += event.reasoning;
      }
      if (event.content || event.calls.length) this.#endThinking();
      message.content += event.content;
      if (event.calls.length) message.calls = addCalls(message.calls, event.calls);
    } else if (event.type === "usage") {
      message.usage = event.usage;
      message.model = event.model ?? message.model;
    } else if (event.type === "finish") {
      message.finish = event.reason;
    }
  }

  #endThinking() {
    if (this.#thinkingFrom !== null) {
      this.message.times.thinking ??= (performance.now() - this.#thinkingFrom) / 1000;
    }
  }

  #fail(error) {
    const known = error instanceof ServerError;
    if (!known) console.error(error);
    const message = known ? error.message : `The page failed: ${error.message}`;
    this.message.status = known && error.kind === "broken" ? "broken" : "failed";
    this.message.error = { message, kind: known ? error.kind : "failed", status: known ? error.status : null };
  }

  async #save() {
    this.#saved = performance.now();
    await this.onSave();
  }
}
