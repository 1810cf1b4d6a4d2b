// Markdown within one paragraph, to nodes: {type: text | code | math, text}, {type: strong | em | del, children},
// {type: link, href, children}, {type: break}. HTML stays text. Time grows with the length of the text, whatever is in it.

const ESCAPABLE = /[!-/:-@[-`{-~]/;
const SPACE = /\s/u;
const PUNCTUATION = /[\p{P}\p{S}]/u;
// Text without spaces between words: beside it a mark of emphasis counts as if it stood beside a space.
const CJK = /[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Hangul}\u3000-\u303f\uff00-\uffef]/u;
const PLAIN = /[^\\`*_~[\]!\n$h<]+/y;
const URL_START = /https?:\/\/[^\s<>"'`]+/y;
const ANGLE_LINK = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/y;
const MAX_LINK_CHARS = 4096;
const MAX_DEPTH = 20; // of emphasis, of brackets: what is deeper stays text

export function parseInline(text) {
  const scanner = new Scanner(text);
  return emphasize(scanner.run());
}

/** An address a link may lead to, or null: http, https and mailto, nothing relative. */
export function safeAddress(href) {
  try {
    const url = new URL(href);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

// First pass: everything but emphasis, whose marks become {type: "mark"}.
class Scanner {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.items = [];
    this.brackets = []; // places of "[" in items that may become links
    this.missing = new Set(); // closing marks that do not come any more
  }

  run() {
    while (this.at < this.text.length) this.step();
    return this.items;
  }

  step() {
    const { text, at } = this;
    PLAIN.lastIndex = at;
    const plain = PLAIN.exec(text);
    if (plain) {
      this.add(plain[0]);
      this.at += plain[0].length;
      return;
    }
    const char = text[at];
    if (char === "\\") this.backslash();
    else if (char === "`") this.codeSpan();
    else if (char === "*" || char === "_" || char === "~") this.mark(char);
    else if (char === "[") this.openBracket(1);
    else if (char === "!" && text[at + 1] === "[") this.openBracket(2);
    else if (char === "]") this.closeBracket();
    else if (char === "\n") this.lineEnd();
    else if (char === "$") this.dollar();
    else if (char === "h") this.address(URL_START);
    else if (char === "<") this.address(ANGLE_LINK);
    else this.literal(1);
  }

  add(text) {
    const last = this.items.at(-1);
    if (last?.type === "text" && !last.bracket) last.text += text;
    else this.items.push({ type: "text", text });
  }

  literal(length) {
    this.add(this.text.slice(this.at, this.at + length));
    this.at += length;
  }

  /** indexOf that remembers what is not there, so that many lonely openers cost one search. */
  find(what, from) {
    if (this.missing.has(what)) return -1;
    const place = this.text.indexOf(what, from);
    if (place < 0) this.missing.add(what);
    return place;
  }

  backslash() {
    const next = this.text[this.at + 1];
    if (next === "(" || next === "[") {
      const close = this.find(next === "(" ? "\\)" : "\\]", this.at + 2);
      if (close >= 0) return this.math(this.at + 2, close, close + 2, next === "[");
    }
    if (next === "\n") {
      this.items.push({ type: "break" });
      this.at += 2;
    } else if (next !== undefined && ESCAPABLE.test(next)) {
      this.add(next);
      this.at += 2;
    } else {
      this.literal(1);
    }
  }

  math(start, stop, next, display) {
    this.items.push({ type: "math", text: this.text.slice(start, stop).trim(), display });
    this.at = next;
  }

  // $...$ is mathematics if no space is inside its ends and no digit follows, so that prices stay prices.
  dollar() {
    const { text, at } = this;
    if (text[at + 1] === "$") {
      const close = this.find("$$", at + 2);
      if (close > at + 2) return this.math(at + 2, close, close + 2, true);
      return this.literal(2);
    }
    const close = this.find("$", at + 1);
    const inside = close < 0 ? "" : text.slice(at + 1, close);
    const fits = inside !== "" && inside === inside.trim() && !inside.includes("\n\n") && !/\d/.test(text[close + 1] ?? "");
    if (fits) return this.math(at + 1, close, close + 1, false);
    return this.literal(1);
  }

  codeSpan() {
    let length = 1;
    while (this.text[this.at + length] === "`") length += 1;
    const fence = "`".repeat(length);
    let close = this.find(fence, this.at + length);
    while (close >= 0) {
      let end = close;
      while (this.text[end] === "`") end += 1;
      if (end - close === length) break;
      close = this.text.indexOf(fence, end);
      if (close < 0) this.missing.add(fence);
    }
    if (close < 0) return this.literal(length);
    let code = this.text.slice(this.at + length, close).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/s.test(code)) code = code.slice(1, -1);
    this.items.push({ type: "code", text: code });
    this.at = close + length;
  }

  mark(char) {
    const { text, at } = this;
    let length = 1;
    while (text[at + length] === char) length += 1;
    const before = at === 0 ? " " : text[at - 1];
    const after = text[at + length] ?? " ";
    const loose = (c) => SPACE.test(c) || PUNCTUATION.test(c) || CJK.test(c);
    const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || loose(before));
    const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || loose(after));
    const word = char === "_"; // snake_case has no emphasis
    const opens = word ? left && (!right || PUNCTUATION.test(before)) : left;
    const closes = word ? right && (!left || PUNCTUATION.test(after)) : right;
    if (char === "~" && length !== 2) return this.literal(length);
    this.items.push({ type: "mark", char, length, opens, closes });
    this.at += length;
  }

  openBracket(length) {
    if (this.brackets.length >= MAX_DEPTH) return this.literal(length);
    this.brackets.push(this.items.length);
    this.items.push({ type: "text", text: this.text.slice(this.at, this.at + length), bracket: true });
    this.at += length;
  }

  closeBracket() {
    const opener = this.brackets.pop();
    const target = opener === undefined ? null : this.target();
    if (target === null) return this.literal(1);
    const image = this.items[opener].text === "![";
    const children = emphasize(this.items.splice(opener).slice(1));
    // A picture from elsewhere would tell its server who reads: it becomes a link that says so.
    if (image) children.unshift({ type: "text", text: "image: " });
    this.items.push({ type: "link", href: target.href, children });
    if (!image) this.brackets = this.brackets.filter((place) => this.items[place].text === "![");
    this.at = target.next;
  }

  // "(address)" or "(address "title")" behind the "]", with parentheses in the address in pairs.
  target() {
    const { text } = this;
    let i = this.at + 2;
    if (text[this.at + 1] !== "(") return null;
    const limit = Math.min(text.length, i + MAX_LINK_CHARS);
    let depth = 0;
    const start = i;
    for (; i < limit; i += 1) {
      if (text[i] === "(") depth += 1;
      else if (text[i] === ")") {
        if (depth === 0) break;
        depth -= 1;
      } else if (text[i] === "\n") return null;
    }
    if (text[i] !== ")") return null;
    const inside = text.slice(start, i).trim();
    const words = /^<([^<>]*)>|^(\S*)/.exec(inside);
    return { href: words[1] ?? words[2], next: i + 1 };
  }

  lineEnd() {
    const last = this.items.at(-1);
    const hard = last?.type === "text" && / {2,}$/.test(last.text.slice(-8));
    if (hard) {
      last.text = last.text.trimEnd();
      this.items.push({ type: "break" });
    } else this.add("\n");
    this.at += 1;
  }

  address(pattern) {
    pattern.lastIndex = this.at;
    const match = pattern.exec(this.text);
    if (!match) return this.literal(1);
    let href = match[1] ?? match[0];
    if (match[1] === undefined) {
      // a full stop or bracket behind an address belongs to the sentence
      href = href.slice(0, MAX_LINK_CHARS);
      const tail = /[.,:;!?*_~\])}、。，：；！？）】》]{1,16}$/.exec(href.slice(-16));
      if (tail) href = href.slice(0, href.length - (/\(/.test(href) && tail[0].startsWith(")") ? tail[0].length - 1 : tail[0].length));
      this.at += href.length;
    } else this.at += match[0].length;
    this.items.push({ type: "link", href, children: [{ type: "text", text: href }] });
  }
}

// Second pass: marks to emphasis. A frame is an opener that waits for its closer; each is opened and closed once.
function emphasize(items) {
  const frames = [{ char: null, length: 0, children: [] }];
  const waiting = { "*": 0, _: 0, "~": 0 };
  const spillAbove = (depth) => {
    const into = frames[depth].children;
    for (const frame of frames.splice(depth + 1)) {
      waiting[frame.char] -= 1;
      into.push({ type: "text", text: frame.char.repeat(frame.length) });
      for (const child of frame.children) into.push(child);
    }
  };
  for (const item of items) {
    if (item.type !== "mark") {
      frames.at(-1).children.push(item);
      continue;
    }
    let left = item.length;
    while (item.closes && left > 0 && waiting[item.char] > 0) {
      spillAbove(frames.findLastIndex((frame) => frame.char === item.char));
      left -= close(frames, waiting, left);
    }
    if (left > 0 && item.opens && frames.length <= MAX_DEPTH) {
      frames.push({ char: item.char, length: left, children: [] });
      waiting[item.char] += 1;
    } else if (left > 0) frames.at(-1).children.push({ type: "text", text: item.char.repeat(left) });
  }
  spillAbove(0);
  return merged(frames[0].children);
}

/** Closes the last frame, by one mark or by two, and returns how many it took. */
function close(frames, waiting, left) {
  const frame = frames.at(-1);
  const used = frame.length >= 2 && left >= 2 ? 2 : 1;
  const type = frame.char === "~" ? "del" : used === 2 ? "strong" : "em";
  frame.length -= used;
  const node = { type, children: frame.children };
  if (frame.length > 0) frame.children = [node];
  else {
    frames.pop();
    waiting[frame.char] -= 1;
    frames.at(-1).children.push(node);
  }
  return used;
}

function merged(nodes) {
  const result = [];
  for (const node of nodes) {
    if (node.children) node.children = merged(node.children);
    if (node.type === "text" && result.at(-1)?.type === "text") result.at(-1).text += node.text;
    else result.push(node.type === "text" ? { type: "text", text: node.text } : node);
  }
  return result;
}
