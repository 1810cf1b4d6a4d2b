// DOM nodes out of Markdown. Text of a model becomes text nodes and nothing else: no innerHTML anywhere in this page.

import { highlight } from "./highlight.js";
import { parseInline, safeAddress } from "./inline.js";
import { GrowingMarkdown, parseBlocks } from "./markdown.js";

/** element("a.link", {href: "..."}, "text", child): tag with classes, attributes, children; null children are left out. */
export function element(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon of the sheet in index.html; what it means stands in the label of its button. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, action, spec = "button.icon-button") {
  return element(spec, { type: "button", "aria-label": label, title: label, onclick: action }, icon(name));
}

/** Copies text and says so on the button for a moment. */
export async function copyText(text, button) {
  const done = await copy(text);
  const label = button.getAttribute("aria-label") ?? "";
  button.setAttribute("data-said", done ? "Copied" : "Not copied");
  button.setAttribute("aria-label", done ? "Copied" : "The browser did not allow copying");
  setTimeout(() => {
    button.removeAttribute("data-said");
    button.setAttribute("aria-label", label);
  }, 1500);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // pages of other hosts over plain http have no clipboard: select a hidden text and copy that
    const area = element("textarea.offscreen", { "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

/** Keeps `root` showing a Markdown text that grows; nodes of finished blocks stay as they are. */
export class MarkdownView {
  #growing = new GrowingMarkdown();
  #last = null;

  constructor(root) {
    this.root = root;
  }

  show(text) {
    if (text === this.#last) return;
    if (this.#last !== null && !text.startsWith(this.#last)) this.#growing = new GrowingMarkdown();
    this.#last = text;
    const before = this.#growing.blocks;
    const kept = this.#growing.push(text);
    const { blocks } = this.#growing;
    for (let i = kept; i < blocks.length; i += 1) {
      const shown = this.root.childNodes[i];
      if (shown && i < before.length && updateCode(shown, before[i], blocks[i])) continue;
      const node = blockNode(blocks[i]);
      if (shown) shown.replaceWith(node);
      else this.root.append(node);
    }
    while (this.root.childNodes.length > blocks.length) this.root.lastChild.remove();
  }
}

/** A code block that grows keeps its nodes, so that a selection and its scroll position stay. */
function updateCode(node, before, now) {
  if (before.type !== "code" || now.type !== "code" || !now.open || before.language !== now.language) return false;
  node.lastChild.firstChild.textContent = now.text;
  return true;
}

export function renderMarkdown(text) {
  return parseBlocks(text).map(blockNode);
}

function blockNode(block) {
  switch (block.type) {
    case "heading":
      // the page has its own h1 and h2
      return element(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case "paragraph":
      return element("p", {}, ...inline(block.text));
    case "code":
      return codeNode(block);
    case "math":
      return element("pre.math", { tabindex: 0, "aria-label": "formula" }, block.text);
    case "rule":
      return element("hr");
    case "quote":
      return element("blockquote", {}, ...block.blocks.map(blockNode));
    case "list":
      return listNode(block);
    case "table":
      return tableNode(block);
    default:
      throw new Error(`unknown block ${block.type}`);
  }
}

function codeNode(block) {
  const copyButton = element(
    "button.copy",
    { type: "button", "aria-label": "Copy code", onclick: () => copyText(code.textContent, copyButton) },
    icon("copy"),
    element("span", {}, "Copy"),
  );
  const code = element("code", {}, ...(block.open ? [block.text] : highlight(block.text, block.language).map(piece)));
  const label = block.language ? `code, ${block.language}` : "code";
  return element(
    "div.code",
    {},
    element("div.code-head", {}, element("span", {}, block.language || "text"), copyButton),
    element("pre", { tabindex: 0, role: "group", "aria-label": label }, code),
  );
}

function piece({ kind, text }) {
  return kind ? element(`span.hl-${kind}`, {}, text) : text;
}

function listNode(block) {
  const list = element(block.ordered ? "ol" : "ul", block.ordered && block.first !== 1 ? { start: block.first } : {});
  for (const { done, blocks } of block.items) {
    const item = element(done === null ? "li" : "li.task");
    if (done !== null) {
      const box = element("input", { type: "checkbox", disabled: true, "aria-label": done ? "done" : "to do" });
      box.checked = done;
      item.append(box, " ");
    }
    for (const inner of blocks) {
      if (inner.type === "paragraph" && !block.loose) item.append(...inline(inner.text));
      else item.append(blockNode(inner));
    }
    list.append(item);
  }
  return list;
}

function tableNode({ align, head, rows }) {
  const cell = (tag, text, column) => element(align[column] ? `${tag}.${align[column]}` : tag, {}, ...inline(text));
  return element(
    "div.table",
    { tabindex: 0, role: "group", "aria-label": "table" },
    element(
      "table",
      {},
      element("thead", {}, element("tr", {}, ...head.map((text, column) => cell("th", text, column)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, i) => cell("td", text, i))))),
    ),
  );
}

function inline(text) {
  return parseInline(text).map(inlineNode);
}

function inlineNode(node) {
  switch (node.type) {
    case "text":
      return document.createTextNode(node.text);
    case "code":
      return element("code", {}, node.text);
    case "math":
      return element("span.math", {}, node.text);
    case "break":
      return element("br");
    case "link":
      return linkNode(node);
    default:
      return element(node.type, {}, ...node.children.map(inlineNode)); // strong, em, del
  }
}

function linkNode({ href, children }) {
  const address = safeAddress(href);
  const content = children.map(inlineNode);
  if (address === null) return element("span.dead-link", { title: "This link leads nowhere safe." }, ...content);
  return element("a", { href: address, title: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...content);
}
