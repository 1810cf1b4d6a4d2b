// Colours for code, without a grammar per language: comments, strings, numbers, and the words many languages share.

const MAX_CHARS = 60_000;
const WORDS = new Set(
  (
    "abstract and as assert async await break case catch class const continue def default del do elif else end enum " +
    "except export extends false finally fn for from func function global go if impl implements import in interface " +
    "is lambda let loop match mod module mut new nil none None not null of or package pass private protected pub " +
    "public raise return select self static struct super switch then this throw trait true True False try type typeof " +
    "undefined unless until use using var void when where while with yield SELECT FROM WHERE JOIN INSERT UPDATE DELETE " +
    "CREATE TABLE INTO VALUES GROUP ORDER BY AND OR NOT NULL int float double char bool string str"
  ).split(" "),
);
const HASH = ["python", "py", "sh", "bash", "shell", "zsh", "console", "yaml", "yml", "toml", "ruby", "rb", "r", "perl"];
const HASH_TOO = ["makefile", "make", "dockerfile", "ini", "conf", "elixir", "julia", "nim", "powershell"];
const DASHES = ["sql", "lua", "haskell", "hs", "ada", "vhdl"];
const NONE = ["", "text", "txt", "plain", "plaintext", "markdown", "md", "diff", "json", "html", "xml", "csv", "log"];
const hash = new Set([...HASH, ...HASH_TOO]);

const LINE_COMMENT = { hash: /#[^\n]*/y, dashes: /--[^\n]*/y, slashes: /\/\/[^\n]*/y };
const BLOCK_COMMENT = /\/\*(?:[^*]|\*(?!\/))*(?:\*\/|$)/y;
const TRIPLE = /"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)/y;
const STRING = /"(?:[^"\\\n]|\\.)*"?|'(?:[^'\\\n]|\\.)*'?/y;
const TEMPLATE = /`(?:[^`\\]|\\[^])*`?/y;
const NUMBER = /(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\w*/y;
const WORD = /[\p{L}_$@][\p{L}\p{N}_$]*/uy;
const OTHER = /[^"'`#\/\-\p{L}\p{N}_$@]+|[^]/uy;

/** [{kind: "comment" | "string" | "number" | "word" | "name" | null, text}]; the texts joined are `code`. */
export function highlight(code, language) {
  const name = language.toLowerCase();
  if (NONE.includes(name) && name !== "json") return [{ kind: null, text: code }];
  if (code.length > MAX_CHARS) return [{ kind: null, text: code }];
  const comments = hash.has(name) ? [LINE_COMMENT.hash] : DASHES.includes(name) ? [LINE_COMMENT.dashes] : [LINE_COMMENT.slashes, BLOCK_COMMENT];
  const rules = [
    ...comments.map((pattern) => ["comment", pattern]),
    ...(name === "python" || name === "py" || name === "toml" ? [["string", TRIPLE]] : []),
    ["string", STRING],
    ...(["js", "javascript", "ts", "typescript", "go", "jsx", "tsx"].includes(name) ? [["string", TEMPLATE]] : []),
    ["number", NUMBER],
    ["name", WORD],
    [null, OTHER],
  ];
  const pieces = [];
  for (let at = 0; at < code.length; ) {
    const [kind, text] = next(code, at, rules);
    at += text.length;
    if (kind === null && pieces.at(-1)?.kind === null) pieces.at(-1).text += text;
    else pieces.push({ kind, text });
  }
  return pieces;
}

function next(code, at, rules) {
  for (const [kind, pattern] of rules) {
    pattern.lastIndex = at;
    const match = pattern.exec(code);
    if (!match || match[0] === "") continue;
    if (kind !== "name") return [kind, match[0]];
    if (WORDS.has(match[0])) return ["word", match[0]];
    return [code[at + match[0].length] === "(" ? "name" : null, match[0]];
  }
  return [null, code[at]];
}
