// The field in which messages are written, with the files of the next message.

import { element, icon, iconButton } from "./dom.js";
import { newId } from "./conversation.js";
import { readFile } from "./files.js";
import { fileItem } from "./thread.js";

const LONG_PASTE = 8000; // characters; a longer text goes in as a file, and the field stays a field
const BYTES_PER_TOKEN = 4; // for estimates where the server does not count

const by = (id) => document.getElementById(id);

/** `actions`: send(), stop(), changed(), countTokens(text, signal). `files`: [{id, name, size, text, tokens, about}]. */
export class Composer {
  files = [];

  constructor(actions) {
    this.actions = actions;
    this.field = by("prompt");
    this.hint = by("hint");
    by("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.actions.send();
    });
    this.field.addEventListener("input", () => this.#changed());
    this.field.addEventListener("keydown", (event) => this.#key(event));
    this.field.addEventListener("paste", (event) => this.#paste(event));
    by("attach").addEventListener("click", () => by("file-input").click());
    by("file-input").addEventListener("change", async (event) => {
      await this.add([...event.target.files]);
      event.target.value = "";
    });
    by("stop").addEventListener("click", () => this.actions.stop());
    this.#acceptDrops();
  }

  get text() {
    return this.field.value;
  }

  get isEmpty() {
    return this.text.trim() === "" && this.files.length === 0;
  }

  fill(text, files = []) {
    this.field.value = text;
    this.files = files;
    this.hint.textContent = "";
    this.#changed();
  }

  /** Adds files of the browser; what cannot be read is told below the field. */
  async add(given) {
    const problems = [];
    for (const file of given) {
      const read = await readFile(file);
      if (read.problem) problems.push(read.problem);
      else this.#addText(read);
    }
    this.hint.textContent = problems.slice(0, 3).join(" ") + (problems.length > 3 ? ` And ${problems.length - 3} more.` : "");
  }

  #addText({ name, size, text }) {
    const file = { id: newId(), name, size, text, tokens: null, about: false };
    this.files.push(file);
    this.#changed();
    this.#count(file);
  }

  async #count(file) {
    try {
      file.tokens = await this.actions.countTokens(file.text);
    } catch {
      file.tokens = Math.ceil(file.size / BYTES_PER_TOKEN);
      file.about = true;
    }
    this.#changed();
  }

  #changed() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
    by("chips").replaceChildren(...this.files.map((file) => this.#chip(file)));
    by("send").disabled = this.isEmpty;
    this.actions.changed();
  }

  #chip(file) {
    const item = fileItem(file);
    const remove = iconButton("close", `Remove ${file.name}`, () => {
      this.files = this.files.filter((other) => other !== file);
      this.#changed();
      this.field.focus();
    }, "button.icon-button.small");
    item.append(remove);
    return item;
  }

  #key(event) {
    // Enter of an input method ends a word, and on a touch screen it is the only way to a new line
    const touch = matchMedia("(pointer: coarse)").matches;
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || (touch && !event.ctrlKey && !event.metaKey)) return;
    event.preventDefault();
    this.actions.send();
  }

  #paste(event) {
    const files = [...event.clipboardData.files];
    const text = event.clipboardData.getData("text/plain");
    if (files.length && !text) {
      event.preventDefault();
      this.add(files);
    } else if (text.length > LONG_PASTE) {
      event.preventDefault();
      const number = this.files.filter((file) => file.name.startsWith("pasted")).length + 1;
      this.#addText({ name: `pasted-${number}.txt`, size: new TextEncoder().encode(text).length, text });
    }
  }

  #acceptDrops() {
    let inside = 0;
    const show = (step) => {
      inside = step === 0 ? 0 : inside + step;
      by("drop").hidden = inside <= 0;
    };
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragenter", (event) => hasFiles(event) && show(1));
    document.addEventListener("dragleave", (event) => hasFiles(event) && show(-1));
    document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
    document.addEventListener("drop", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      show(0);
      this.add([...event.dataTransfer.files]);
      this.field.focus();
    });
  }
}

/** "1,234 of 1,048,576 tokens" with a ring, for the tokens that the next request reads. */
export function meterNodes(used, limit) {
  const share = Math.min(1, used / limit);
  const ring = icon("wave");
  ring.replaceChildren();
  ring.setAttribute("viewBox", "0 0 20 20");
  const circle = (className, length) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of [["cx", 10], ["cy", 10], ["r", 7], ["pathLength", 100]]) node.setAttribute(name, value);
    node.setAttribute("class", className);
    node.setAttribute("stroke-dasharray", `${length} 100`);
    return node;
  };
  ring.append(circle("ring-all", 100));
  if (used > 0) ring.append(circle("ring-used", Math.max(share * 100, 1)));
  const short = (number) => (number < 10_000 ? String(number) : `${Math.round(number / 1000)}k`);
  const words = element("span", {}, `${short(used)} / ${short(limit)}`);
  return [ring, words];
}
