// The list of chats, with search over titles and all that was said.

import { element, iconButton } from "./dom.js";
import { age } from "./format.js";

/** `actions`: open(id), rename(chat), remove(chat). */
export class Sidebar {
  #hits = null; // chats in whose messages the search words stand; null without a search

  constructor({ list, search, findMessages }, actions) {
    this.list = list;
    this.search = search;
    this.actions = actions;
    this.findMessages = findMessages;
    this.chats = [];
    let timer = null;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#find(), 120);
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && search.value !== "") {
        event.stopPropagation();
        search.value = "";
        this.#find();
      } else if (event.key === "Enter" || event.key === "ArrowDown") {
        event.preventDefault();
        this.list.querySelector("a")?.[event.key === "Enter" ? "click" : "focus"]();
      }
    });
    list.addEventListener("keydown", (event) => this.#move(event));
  }

  /** `current`: the open chat's id. `writing`: ids of chats with an answer on its way. */
  show(chats, current, writing) {
    Object.assign(this, { chats, current, writing });
    this.#draw();
  }

  async #find() {
    const words = this.#words();
    this.#hits = words.length ? await this.findMessages(words) : null;
    this.#draw();
  }

  #words() {
    return this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
  }

  #draw() {
    const words = this.#words();
    const found = this.chats.filter((chat) => {
      const title = chat.title.toLowerCase();
      return words.every((word) => title.includes(word)) || this.#hits?.has(chat.id);
    });
    const shown = words.length ? found : this.chats;
    const nodes = [];
    let heading = null;
    let group = null;
    for (const chat of shown.toSorted((a, b) => b.updated - a.updated)) {
      const under = age(chat.updated);
      if (under !== heading) {
        heading = under;
        group = element("ul", { "aria-label": under });
        nodes.push(element("h2", {}, under), group);
      }
      group.append(this.#item(chat));
    }
    if (!nodes.length) nodes.push(element("p.nothing", {}, words.length ? "No chat has these words." : "No chats yet."));
    this.list.replaceChildren(...nodes);
  }

  #item(chat) {
    const isCurrent = chat.id === this.current;
    const link = element(
      "a",
      { href: `#${chat.id}`, "aria-current": isCurrent ? "page" : null, title: chat.title },
      element("span.chat-title", {}, chat.title),
      ...(this.writing.has(chat.id) ? [element("span.pulse", { role: "img", "aria-label": "answer on its way" })] : []),
    );
    return element(
      isCurrent ? "li.current" : "li",
      {},
      link,
      iconButton("edit", `Rename ${chat.title}`, () => this.actions.rename(chat), "button.icon-button.small"),
      iconButton("close", `Delete ${chat.title}`, () => this.actions.remove(chat), "button.icon-button.small"),
    );
  }

  #move(event) {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const links = [...this.list.querySelectorAll("a")];
    const place = links.indexOf(document.activeElement) + (event.key === "ArrowDown" ? 1 : -1);
    event.preventDefault();
    (links[place] ?? (place < 0 ? this.search : links.at(-1)))?.focus();
  }
}

/** The ids of the chats with a message that has all the words. */
export function chatsWith(messages, words) {
  const found = new Set();
  for (const message of messages) {
    if (found.has(message.chat)) continue;
    const files = (message.files ?? []).map((file) => file.name).join(" ");
    const text = `${message.text ?? ""} ${files} ${message.content ?? ""} ${message.reasoning ?? ""}`.toLowerCase();
    if (words.every((word) => text.includes(word))) found.add(message.chat);
  }
  return found;
}
