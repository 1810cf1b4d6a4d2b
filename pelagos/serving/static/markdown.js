// Markdown to blocks, for the text of a model: safe, quick on any input, and good at text that is still being written.
//
// Blocks: {type: "heading", level, text} | "paragraph", text | "code", language, text, open | "math", text | "rule"
// | "quote", blocks | "list", ordered, first, loose, items: [{done: true | false | null, blocks}] | "table", align, head, rows.
// Each has `line`, where it starts. Left out on purpose: HTML (it stays text), indented code and reference links.

const MAX_DEPTH = 12; // quotes and lists within each other; what is deeper becomes a paragraph
const MAX_MATH_LINES = 100;
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: |$)/;
const TABLE_LINE = /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const MATH_OPEN = /^ {0,3}(\$\$|\\\[)/;
const MATH_CLOSE = { $$: "$$", "\\[": "\\]" };

export function parseBlocks(text) {
  return blocksOf(splitLines(text), 0);
}

/**
 * The blocks of a text that grows. What is added can change the last block, and can make it part of the one before ("#"
 * starts a heading, "#5" goes on with a paragraph), so only those two are parsed again. `push` returns how many of the
 * blocks before are the same still.
 */
export class GrowingMarkdown {
  blocks = [];

  /** `text`: the whole text, which starts with what was given before. */
  push(text) {
    const lines = splitLines(text);
    const before = this.blocks;
    let kept = Math.max(0, before.length - 2);
    const from = before[kept]?.line ?? 0;
    const fresh = blocksOf(lines.slice(from), 0);
    for (const block of fresh) block.line += from;
    this.blocks = [...before.slice(0, kept), ...fresh];
    while (kept < before.length && JSON.stringify(before[kept]) === JSON.stringify(this.blocks[kept])) kept += 1;
    return kept;
  }
}

function splitLines(text) {
  return text.replaceAll("\r\n", "\n").split("\n");
}

function blocksOf(lines, depth) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [block, next] = blockAt(lines, at, depth);
    block.line = at;
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  if (FENCE.test(line)) return code(lines, at);
  if (MATH_OPEN.test(line)) {
    const found = math(lines, at);
    if (found) return found;
  }
  if (HEADING.test(line)) return [heading(line), at + 1];
  if (RULE.test(line)) return [{ type: "rule" }, at + 1];
  if (depth < MAX_DEPTH && QUOTE.test(line)) return quote(lines, at, depth);
  if (depth < MAX_DEPTH && ITEM.test(line)) return list(lines, at, depth);
  if (isTable(lines, at)) return table(lines, at);
  return paragraph(lines, at, depth);
}

function code(lines, at) {
  const [, indent, fence, info] = FENCE.exec(lines[at]);
  const body = [];
  let next = at + 1;
  let open = true;
  for (; next < lines.length && open; next += 1) {
    const bare = lines[next].trim();
    if (bare.length >= fence.length && bare === fence[0].repeat(bare.length)) open = false;
    else body.push(withoutIndent(lines[next], indent.length));
  }
  const language = info.trim().split(/[\s,{]/, 1)[0].slice(0, 40);
  return [{ type: "code", language, text: body.join("\n"), open }, next];
}

function withoutIndent(line, most) {
  let cut = 0;
  while (cut < most && line[cut] === " ") cut += 1;
  return line.slice(cut);
}

function math(lines, at) {
  const mark = MATH_OPEN.exec(lines[at])[1];
  const close = MATH_CLOSE[mark];
  const first = lines[at].trimStart().slice(2);
  const body = [];
  const stop = Math.min(lines.length, at + MAX_MATH_LINES);
  for (let next = at; next < stop && (next === at || lines[next].trim() !== ""); next += 1) {
    const part = next === at ? first : lines[next];
    const end = part.indexOf(close);
    if (end >= 0) {
      if (part.slice(end + 2).trim() !== "") return null; // text goes on: the paragraph has the formula in it
      body.push(part.slice(0, end));
      return [{ type: "math", text: body.join("\n").trim() }, next + 1];
    }
    body.push(part);
  }
  return null;
}

function heading(line) {
  const level = HEADING.exec(line)[1].length;
  let text = line.trim().slice(level).trim();
  const bare = text.replace(/#+$/, "");
  if (bare === "" || /[ \t]$/.test(bare)) text = bare.trim();
  return { type: "heading", level, text };
}

function quote(lines, at, depth) {
  const inner = [];
  let next = at;
  for (; next < lines.length; next += 1) {
    if (QUOTE.test(lines[next])) inner.push(lines[next].replace(QUOTE, ""));
    else if (inner.at(-1).trim() !== "" && continuesParagraph(lines, next)) inner.push(lines[next]);
    else break;
  }
  return [{ type: "quote", blocks: blocksOf(inner, depth + 1) }, next];
}

/** Whether a line is mere text, which belongs to the paragraph before it. */
function continuesParagraph(lines, at) {
  const line = lines[at];
  if (line.trim() === "" || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return false;
  if (MATH_OPEN.test(line) && math(lines, at)) return false;
  const item = ITEM.exec(line);
  // "1985. A good year" in a paragraph is no list; "1. First" and "- first" are.
  return !(item && (item[2].length === 1 || /^1[.)]/.test(item[2])));
}

function paragraph(lines, at) {
  let next = at + 1;
  while (next < lines.length && continuesParagraph(lines, next) && !isTable(lines, next)) next += 1;
  return [{ type: "paragraph", text: lines.slice(at, next).join("\n").trim() }, next];
}

function list(lines, at, depth) {
  const kind = (mark) => (mark.length === 1 ? mark : mark.at(-1));
  const [, { length: indent }, firstMark] = ITEM.exec(lines[at]);
  const ordered = firstMark.length > 1;
  const items = [];
  let loose = false;
  let next = at;
  while (next < lines.length) {
    const item = ITEM.exec(lines[next]);
    if (!item || kind(item[2]) !== kind(firstMark) || item[1].length > indent + 3 || RULE.test(lines[next])) break;
    const [body, after] = itemLines(lines, next, item);
    next = after;
    const task = /^\[([ xX])\] /.exec(body[0]);
    if (task) body[0] = body[0].slice(4);
    const blocks = blocksOf(body, depth + 1);
    items.push({ done: task ? task[1] !== " " : null, blocks });
    loose ||= blocks.filter((block) => block.type === "paragraph").length > 1;
  }
  return [{ type: "list", ordered, first: ordered ? Number.parseInt(firstMark, 10) : null, loose, items }, next];
}

/** The lines of one item without their indent, and where the next item may start. */
function itemLines(lines, at, [, indent, mark]) {
  const shift = indent.length + mark.length + 1;
  const body = [lines[at].slice(shift).replace(/^ {1,3}(?! )/, "")];
  let next = at + 1;
  for (; next < lines.length; next += 1) {
    const line = lines[next];
    const depth = indentOf(line);
    if (line.trim() === "") {
      // blank lines belong to the item if what follows does
      let then = next;
      while (then < lines.length && lines[then].trim() === "") then += 1;
      if (then === lines.length) return [body, next];
      if (indentOf(lines[then]) <= indent.length + 1) return [body, ITEM.test(lines[then]) ? then : next];
      body.push("");
      next = then - 1;
    } else if (depth > indent.length + 1) body.push(line.slice(Math.min(depth, shift)));
    else if (!ITEM.test(line) && body.at(-1).trim() !== "" && continuesParagraph(lines, next)) body.push(line.trimStart());
    else break;
  }
  return [body, next];
}

function indentOf(line) {
  return line.length - line.trimStart().length;
}

function isTable(lines, at) {
  const [head, under] = [lines[at], lines[at + 1]];
  if (!head.includes("|") || under === undefined || !under.includes("-") || !TABLE_LINE.test(under)) return false;
  return cells(head).length === cells(under).length;
}

function table(lines, at) {
  const head = cells(lines[at]);
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
    return cell.startsWith(":") ? "left" : null;
  });
  const rows = [];
  let next = at + 2;
  for (; next < lines.length && lines[next].includes("|") && lines[next].trim() !== ""; next += 1) {
    const row = cells(lines[next]).slice(0, head.length);
    rows.push([...row, ...Array(head.length - row.length).fill("")]);
  }
  return [{ type: "table", align, head, rows }, next];
}

/** Cells between bars; "\|" is a bar in a cell, and so is one between backticks. */
function cells(line) {
  const found = [""];
  let code = false;
  const text = line.trim();
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === "\\" && text[i + 1] === "|") {
      found[found.length - 1] += "|";
      i += 1;
    } else if (text[i] === "|" && !(code && text.indexOf("`", i) >= 0)) {
      found.push("");
      code = false;
    } else {
      if (text[i] === "`") code = !code;
      found[found.length - 1] += text[i];
    }
  }
  if (found[0].trim() === "") found.shift();
  if (found.length && found.at(-1).trim() === "") found.pop();
  return found.map((cell) => cell.trim());
}
