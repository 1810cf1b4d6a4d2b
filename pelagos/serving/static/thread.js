// The messages of a chat on the page. Views stay while their message is shown, and change as it changes.

import { copyText, element, icon, iconButton, MarkdownView } from "./dom.js";
import { figures } from "./conversation.js";
import { bytes, count, duration, rate, tokens } from "./format.js";

/**
 * `actions`: edit(message), again(message), proceed(message), turn(message, step), openSettings(). Each is called by a
 * button of a message.
 */
export class Thread {
  #views = new Map();

  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
  }

  /** Shows a path of messages; `about(message)` gives {answer or null, versions, isLast} of each. */
  show(path, about) {
    const ids = new Set(path.map((message) => message.id));
    for (const [id, view] of this.#views) {
      if (!ids.has(id)) {
        view.node.remove();
        this.#views.delete(id);
      }
    }
    path.forEach((message, place) => {
      let view = this.#views.get(message.id);
      if (!view) {
        view = message.role === "user" ? new UserView(this.actions) : new AnswerView(this.actions);
        this.#views.set(message.id, view);
      }
      if (this.root.childNodes[place] !== view.node) this.root.insertBefore(view.node, this.root.childNodes[place] ?? null);
      view.update(message, about(message));
    });
  }

  update(message, about) {
    this.#views.get(message.id)?.update(message, about);
  }
}

class UserView {
  constructor(actions) {
    this.actions = actions;
    this.files = element("ul.files", { "aria-label": "Files" });
    this.text = element("div.user-text");
    this.foot = element("div.foot");
    this.node = element("article.message.user", { "aria-label": "You" }, this.files, this.text, this.foot);
  }

  update(message, about) {
    const edit = iconButton("edit", "Edit and send again", () => this.actions.edit(message));
    const copy = iconButton("copy", "Copy", () => copyText(message.text, copy));
    this.files.replaceChildren(...message.files.map(fileItem));
    this.files.hidden = message.files.length === 0;
    this.text.textContent = message.text;
    this.text.hidden = message.text === "";
    this.foot.replaceChildren(...turner(message, about.versions, this.actions), edit, copy);
  }
}

/** {name, size, tokens, about}: `about` marks an estimate, null tokens a count that is on its way. */
export function fileItem(file) {
  const size = file.tokens === null ? bytes(file.size) : `${bytes(file.size)} · ${file.about ? "about " : ""}${tokens(file.tokens)}`;
  return element(
    "li.chip",
    { title: file.name },
    icon("file"),
    element("span.chip-name", {}, file.name),
    element("span.chip-size", {}, size),
  );
}

function turner(message, versions, actions) {
  if (versions.length < 2) return [];
  const place = versions.findIndex((other) => other.id === message.id);
  const back = iconButton("left", "Version before", () => actions.turn(message, -1));
  const on = iconButton("right", "Version after", () => actions.turn(message, 1));
  back.disabled = place === 0;
  on.disabled = place === versions.length - 1;
  const where = element("span", { "aria-label": `Version ${place + 1} of ${versions.length}` }, `${place + 1}/${versions.length}`);
  return [element("span.turner", {}, back, where, on)];
}

class AnswerView {
  #unfolded = null; // what the user chose; null: open while it thinks
  #foot = "";
  #notice = "";

  constructor(actions) {
    this.actions = actions;
    this.thinkingLabel = element("span");
    this.thinkingText = element("div.thinking-text");
    this.summary = element("summary", { onclick: () => (this.#unfolded = !this.thinking.open) }, this.thinkingLabel);
    this.thinking = element("details.reasoning", { hidden: true }, this.summary, this.thinkingText);
    this.body = element("div.body");
    this.calls = element("div");
    this.notice = element("div.notice", { hidden: true });
    this.foot = element("div.foot");
    this.markdown = new MarkdownView(this.body);
    this.node = element(
      "article.message.answer",
      { "aria-label": "Answer" },
      ...[this.thinking, this.body, this.calls, this.notice, this.foot],
    );
  }

  update(message, about) {
    const { answer } = about;
    const writing = message.status === "streaming";
    this.node.classList.toggle("writing", writing && message.content !== "");
    this.node.setAttribute("aria-busy", String(writing));
    this.#showThinking(message, answer, writing);
    this.markdown.show(message.content);
    this.calls.replaceChildren(...message.calls.map(callNode));
    this.#showNotice(message, about, writing);
    this.#showFoot(message, about, writing);
  }

  #showThinking(message, answer, writing) {
    this.thinking.hidden = message.reasoning === "";
    if (this.thinking.hidden) return;
    const active = writing && message.content === "" && message.calls.length === 0;
    const seconds = message.times?.thinking ?? answer?.thinkingSeconds ?? null;
    const thought = message.usage?.completion_tokens_details?.reasoning_tokens;
    const parts = [
      active ? "Thinking" : "Thought",
      seconds === null ? "" : active ? ` · ${duration(seconds)}` : ` for ${duration(seconds)}`,
      thought ? ` · ${tokens(thought)}` : "",
    ];
    this.thinkingLabel.textContent = parts.join("");
    this.thinking.classList.toggle("active", active);
    this.thinking.open = this.#unfolded ?? active;
    const follow = this.thinkingText.scrollHeight - this.thinkingText.scrollTop - this.thinkingText.clientHeight < 30;
    grow(this.thinkingText, message.reasoning);
    if (active && follow) this.thinkingText.scrollTop = this.thinkingText.scrollHeight;
  }

  #showNotice(message, about, writing) {
    const { key, nodes, isError = false } = writing ? waiting(message, about.answer) : ending(message, about, this.actions);
    if (key === this.#notice) return;
    const progress = this.notice.querySelector("progress");
    const fresh = nodes.find((node) => node.nodeName === "PROGRESS");
    this.#notice = key;
    this.notice.hidden = nodes.length === 0;
    this.notice.classList.toggle("error", isError);
    if (progress && fresh && !isError) {
      // the same bar, so that it moves smoothly
      progress.value = fresh.value;
      progress.max = fresh.max;
      this.notice.firstChild.replaceWith(nodes[0]);
    } else this.notice.replaceChildren(...nodes);
  }

  #showFoot(message, about, writing) {
    const found = writing ? null : figures(message);
    const key = JSON.stringify([writing, found, about.versions.map((other) => other.id), message.model, message.content.length]);
    if (key === this.#foot) return;
    this.#foot = key;
    this.foot.replaceChildren(...turner(message, about.versions, this.actions));
    if (writing) return;
    const copy = iconButton("copy", "Copy the answer", () => copyText(message.content, copy));
    const again = iconButton("again", "Answer again", () => this.actions.again(message));
    this.foot.append(...(message.content ? [copy] : []), again);
    if (found) this.foot.append(figuresNode(found, message.model));
  }
}

/** Appends what is new to a text, so that a selection in it stays. */
function grow(node, text) {
  const shown = node.firstChild?.data ?? "";
  if (text === shown) return;
  if (node.firstChild && text.startsWith(shown)) node.firstChild.appendData(text.slice(shown.length));
  else node.textContent = text;
}

function waiting(message, answer) {
  if (!answer) return { key: "elsewhere", nodes: [element("span", {}, "Another tab of this browser receives this answer.")] };
  if (answer.reading) {
    const { read, total, started } = answer.reading;
    const seconds = (performance.now() - started) / 1000;
    const left = read > 0 && read < total && seconds > 2 ? (seconds / read) * (total - read) : null;
    const words = `Reading ${count(read)} of ${tokens(total)}${left === null ? "" : ` · about ${duration(Math.max(1, left))} left`}`;
    const bar = element("progress", { max: total, value: read, "aria-label": "Prompt read" });
    return { key: words, nodes: [element("span", {}, words), bar] };
  }
  if (message.content === "" && message.reasoning === "" && message.calls.length === 0) {
    const words = answer.elapsed < 2 ? "Waiting for the server" : `Waiting for the server · ${duration(Math.floor(answer.elapsed))}`;
    return { key: words, nodes: [element("span.dots", {}, words)] };
  }
  if (answer.silence > 10) {
    const words = `Nothing new for ${duration(Math.floor(answer.silence))}. The server may be busy; you can wait or stop.`;
    return { key: words, nodes: [element("span", {}, words)] };
  }
  return { key: "", nodes: [] };
}

/** What is said below an answer that did not simply end. */
function ending(message, { isLast }, actions) {
  const empty = message.content === "" && message.calls.length === 0;
  const words = endingWords(message, empty);
  if (words === null) return { key: "", nodes: [] };
  const button = (label, action) => element("button.text-button", { type: "button", onclick: action }, label);
  const goOn = isLast && message.calls.length === 0 && (message.content !== "" || message.reasoning !== "");
  const nodes = [
    element("span", {}, words),
    ...(message.error?.status === 401 ? [button("Open settings", () => actions.openSettings())] : []),
    ...(goOn ? [button("Continue", () => actions.proceed(message))] : []),
    ...(message.status !== "done" || empty ? [button("Try again", () => actions.again(message))] : []),
  ];
  const isError = message.status === "broken" || message.status === "failed";
  return { key: JSON.stringify([words, goOn, message.status]), nodes, isError };
}

function endingWords(message, empty) {
  const kept = empty && message.reasoning === "" ? "" : " What came so far is kept.";
  if (message.status === "stopped") return empty ? "Stopped before the answer began." : "Stopped.";
  if (message.status === "broken" || message.status === "failed") {
    return `${message.error?.message ?? "This answer was cut off when its page was closed."}${kept}`;
  }
  if (message.finish === "length") return "The answer reached its longest length.";
  if (message.finish === "content_filter") return "The server cut this answer.";
  if (message.status === "done" && empty) return "The model gave no answer.";
  return null;
}

function callNode(call) {
  const name = element("div.code-head", {}, element("span", {}, `tool call: ${call.name}`));
  return element("div.code", {}, name, element("pre", { tabindex: 0 }, element("code", {}, call.arguments)));
}

function figuresNode(found, model) {
  const cached = found.cached ? ` (${count(found.cached)} cached)` : "";
  const parts = [
    model,
    `${count(found.prompt)} read${cached}`,
    `${count(found.generated)} written`,
    found.first === null ? null : `first after ${duration(found.first)}`,
    found.rate === null ? null : rate(found.rate),
  ].filter((part) => part);
  const explained = [
    `Prompt: ${tokens(found.prompt)}, of which ${found.cached === null ? "an unknown number" : count(found.cached)} came from the cache`,
    `Generated: ${tokens(found.generated)}${found.reasoning === null ? "" : `, of which ${count(found.reasoning)} were thinking`}`,
    ...(found.note ? [`Cache: ${found.note}`] : []),
  ];
  return element("span.figures", { title: explained.join("\n") }, parts.join(" · "));
}
