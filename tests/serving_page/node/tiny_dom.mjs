// As much of a DOM as the page's Markdown needs. Markup as text is an error here, whoever sets it.

class Node {
  childNodes = [];
  parent = null;

  get firstChild() {
    return this.childNodes[0] ?? null;
  }

  get lastChild() {
    return this.childNodes.at(-1) ?? null;
  }

  get textContent() {
    return this.childNodes.map((child) => child.textContent).join("");
  }

  set textContent(text) {
    this.childNodes = [];
    this.append(text);
  }

  append(...children) {
    for (const child of children) {
      const node = child instanceof Node ? child : new Text(String(child));
      node.parent = this;
      this.childNodes.push(node);
    }
  }

  remove() {
    this.parent.childNodes.splice(this.parent.childNodes.indexOf(this), 1);
  }

  replaceWith(node) {
    node.parent = this.parent;
    this.parent.childNodes[this.parent.childNodes.indexOf(this)] = node;
  }
}

class Text extends Node {
  constructor(data) {
    super();
    this.data = data;
  }

  get textContent() {
    return this.data;
  }

  get html() {
    return this.data.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  }
}

class Element extends Node {
  constructor(tag) {
    super();
    this.tag = tag;
    this.attributes = {};
    this.listeners = {};
  }

  set className(names) {
    this.attributes.class = names;
  }

  setAttribute(name, value) {
    if (/^on/i.test(name)) throw new Error(`attribute ${name} would run code`);
    this.attributes[name] = value;
  }

  getAttribute(name) {
    return this.attributes[name] ?? null;
  }

  addEventListener(event, action) {
    this.listeners[event] = action;
  }

  set innerHTML(_) {
    throw new Error("markup as text");
  }

  set outerHTML(_) {
    throw new Error("markup as text");
  }

  insertAdjacentHTML() {
    throw new Error("markup as text");
  }

  get html() {
    const attributes = Object.entries(this.attributes).map(([name, value]) => ` ${name}="${value}"`);
    return `<${this.tag}${attributes.join("")}>${this.childNodes.map((child) => child.html).join("")}</${this.tag}>`;
  }

  *descendants() {
    for (const child of this.childNodes) {
      yield child;
      if (child instanceof Element) yield* child.descendants();
    }
  }
}

globalThis.document = {
  createElement: (tag) => new Element(tag),
  createElementNS: (_, tag) => new Element(tag),
  createTextNode: (text) => new Text(text),
};

export { Element };
