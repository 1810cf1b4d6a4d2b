import assert from "node:assert/strict";
import { test } from "node:test";
import { Element } from "./tiny_dom.mjs";

const { MarkdownView, renderMarkdown } = await import("../../../pelagos/serving/static/dom.js");
const { highlight } = await import("../../../pelagos/serving/static/highlight.js");
const { GrowingMarkdown, parseBlocks } = await import("../../../pelagos/serving/static/markdown.js");
const { parseInline, safeAddress } = await import("../../../pelagos/serving/static/inline.js");

/** The text as a compact string: tags without what every link or table has. */
function shown(text) {
  return renderMarkdown(text)
    .map((node) => node.html)
    .join("")
    .replaceAll(/ (title|target|rel|tabindex|role|aria-label|aria-hidden|type|class)="[^"]*"/g, "");
}

function root(text) {
  const node = new Element("div");
  node.append(...renderMarkdown(text));
  return node;
}

for (const [text, expected] of [
  ["# One\n\ntwo", "<h3>One</h3><p>two</p>"],
  ["###### six #", "<h6>six</h6>"],
  ["#no heading", "<p>#no heading</p>"],
  ["C#\nis ##", "<p>C#\nis ##</p>"],
  ["a *b* **c** ***d*** ~~e~~", "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del></p>"],
  ["snake_case_name and 2*3*4", "<p>snake_case_name and 2<em>3</em>4</p>"],
  ["a * b * c", "<p>a * b * c</p>"],
  ["**open", "<p>**open</p>"],
  ["*a **b*", "<p>*a *<em>b</em></p>"],
  ["这是**“重点”**内容", "<p>这是<strong>“重点”</strong>内容</p>"],
  ["`a*b*` and ``c`d``", "<p><code>a*b*</code> and <code>c`d</code></p>"],
  ["`open", "<p>`open</p>"],
  ["\\*no\\* \\a", "<p>*no* \\a</p>"],
  ["one  \ntwo\\\nthree", "<p>one<br></br>two<br></br>three</p>"],
  ["[a *b*](https://x.org/y)", '<p><a href="https://x.org/y">a <em>b</em></a></p>'],
  ["[a](https://x.org/(b) \"t\") z", '<p><a href="https://x.org/(b)">a</a> z</p>'],
  ["see https://x.org/a_b_c. And", '<p>see <a href="https://x.org/a_b_c">https://x.org/a_b_c</a>. And</p>'],
  ["(https://x.org/A_(b))", '<p>(<a href="https://x.org/A_(b)">https://x.org/A_(b)</a>)</p>'],
  ["<https://x.org> <b>", '<p><a href="https://x.org/">https://x.org</a> &lt;b&gt;</p>'],
  ["[no] [a][b] [c]", "<p>[no] [a][b] [c]</p>"],
  ["![alt](https://x.org/p.png)", '<p><a href="https://x.org/p.png">image: alt</a></p>'],
  ["- a\n- b", "<ul><li>a</li><li>b</li></ul>"],
  ["3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'],
  ["- a\n  - b\n    - c\n- d", "<ul><li>a<ul><li>b<ul><li>c</li></ul></li></ul></li><li>d</li></ul>"],
  ["1. a\n\n   more\n\n2. b", "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>"],
  ["1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"],
  ["- a\n- b\n\ntext", "<ul><li>a</li><li>b</li></ul><p>text</p>"],
  ["* a\n\n- b", "<ul><li>a</li></ul><ul><li>b</li></ul>"],
  ["text\n- a", "<p>text</p><ul><li>a</li></ul>"],
  ["It was\n1985. A good year", "<p>It was\n1985. A good year</p>"],
  ["- [x] a\n- [ ] b", "<ul><li><input disabled=\"\"></input> a</li><li><input disabled=\"\"></input> b</li></ul>"],
  ["- ```\n  x\n  ```", "<ul><li><div><div><span>text</span><button><svg><use href=\"#icon-copy\"></use></svg><span>Copy</span></button></div><pre><code>x</code></pre></div></li></ul>"],
  ["> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"],
  ["---\n***", "<hr></hr><hr></hr>"],
  ["$$\na_b*c*\n$$", "<pre>a_b*c*</pre>"],
  ["\\[ x_1 \\]", "<pre>x_1</pre>"],
  ["so $a_1*b_2$, \\(c_3\\) for $5 and $6-$7", "<p>so <span>a_1*b_2</span>, <span>c_3</span> for $5 and $6-$7</p>"],
  ["| a | b |\n|:-|-:|\n| 1 | `x|y` |\n| 2 |", "<div><table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td><code>x|y</code></td></tr><tr><td>2</td><td></td></tr></tbody></table></div>"],
  ["a | b\nno table", "<p>a | b\nno table</p>"],
]) {
  test(`shows ${JSON.stringify(text)}`, () => assert.equal(shown(text), expected));
}

test("code keeps its text, whatever is in it, and says its language", () => {
  const [block] = parseBlocks('~~~~ python title="x"\n```\n<b>&amp;\n\n  *a*\n~~~~');
  assert.deepEqual({ ...block, line: 0 }, { type: "code", language: "python", text: "```\n<b>&amp;\n\n  *a*", open: false, line: 0 });
  assert.equal(parseBlocks("```js\nopen")[0].open, true);
});

test("code in colours is the same text", () => {
  for (const language of ["python", "js", "sql", "c", "text", "unknown", "bash"]) {
    for (const code of ['x = "a\\"b" # c', "/* open", "'open", '"""doc\n"""', "a-b--c//d", "`${x}` 0xff 1.5e3", "ünï @x"]) {
      assert.equal(highlight(code, language).map((piece) => piece.text).join(""), code);
    }
  }
  const kinds = highlight("def f(x): return 1 # c", "python").filter((piece) => piece.kind);
  assert.deepEqual(kinds.map((piece) => [piece.kind, piece.text]), [["word", "def"], ["name", "f"], ["word", "return"], ["number", "1"], ["comment", "# c"]]);
});

// --- safety ---

test("only http, https and mailto are addresses", () => {
  for (const good of ["https://x.org/a?b#c", "http://x", "mailto:a@b.org", "HTTPS://X.org"]) assert.notEqual(safeAddress(good), null, good);
  for (const bad of ["javascript:alert(1)", "JaVaScRiPt:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)", "java\tscript:alert(1)",
    "\u0001javascript:alert(1)", "data:text/html,x", "vbscript:x", "file:///etc/passwd", "blob:https://x/y", "//x.org", "/a", "#b", "a", ""]) {
    assert.equal(safeAddress(bad), null, bad);
  }
});

const HOSTILE = [
  "<script>alert(1)</script>",
  '<img src=x onerror="alert(1)">',
  "[a](javascript:alert(1))",
  "[a](java\tscript:alert(1))",
  "[a](<javascript:alert(1)>)",
  "![a](javascript:alert(1))",
  "<javascript:alert(1)>",
  '```"><script>alert(1)</script>\n<img onerror=x>',
  "```html\n</code></pre><script>alert(1)</script>",
  '| <b onclick=x> |\n|---|\n| <svg onload=x> |',
  '[x](https://a.org/"onmouseover="alert(1))',
  "- <iframe src=//evil>\n  > <object>",
  "$<img onerror=x>$ $$<script>$$ \\(<b>\\)",
  "&lt;script&gt;",
];

test("nothing in a text becomes markup", () => {
  const allowed = new Set("p h3 h4 h5 h6 em strong del code pre div span button svg use a br hr ul ol li input blockquote table thead tbody tr th td".split(" "));
  const attributes = new Set("class href title target rel tabindex role aria-label aria-hidden type disabled start".split(" "));
  for (const text of [...HOSTILE, HOSTILE.join("\n\n"), HOSTILE.join(" ")]) {
    for (const node of root(text).descendants()) {
      if (!(node instanceof Element)) continue;
      assert.ok(allowed.has(node.tag), `${node.tag} from ${text}`);
      for (const name of Object.keys(node.attributes)) assert.ok(attributes.has(name), `${name} from ${text}`);
      if (node.tag === "a") {
        assert.match(node.attributes.href, /^(https?:|mailto:)/);
        assert.match(node.attributes.rel, /noopener/);
      }
    }
    assert.ok(root(text).textContent.length > 0);
  }
});

// --- text that grows ---

function random(seed) {
  return () => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed / 2 ** 32;
  };
}

const SCRAPS = ["a", "word ", "\n", "\n\n", "# ", "- ", "1. ", "  ", "```", "```js\n", "> ", "| ", "|", "|--|", "*", "**", "_", "`", "[a](", "https://x.org", ")",
  "$", "$$", "\\[", "\\]", "---", "~~", "<b>", "2024. ", "- [ ] ", "    ", "\r\n", "中", "#", "-", "1", "+ "];

test("a text that grows by any pieces shows the same as the whole text", () => {
  const next = random(7);
  for (let round = 0; round < 1500; round += 1) {
    const view = new MarkdownView(new Element("div"));
    const growing = new GrowingMarkdown();
    let text = "";
    const length = 1 + Math.floor(next() * 30);
    for (let i = 0; i < length; i += 1) {
      const scrap = SCRAPS[Math.floor(next() * SCRAPS.length)];
      if (scrap.endsWith("\n") && text.endsWith("\r")) continue;
      text += scrap;
      if (next() < 0.6) {
        view.show(text);
        growing.push(text);
      }
    }
    view.show(text);
    growing.push(text);
    assert.deepEqual(growing.blocks, parseBlocks(text), JSON.stringify(text));
    assert.equal(view.root.html, root(text).html, JSON.stringify(text));
  }
});

test("nodes of finished blocks stay while the text grows", () => {
  const view = new MarkdownView(new Element("div"));
  view.show("first\n\n```\na");
  const [first, code] = view.root.childNodes;
  view.show("first\n\n```\na\nb");
  assert.equal(view.root.childNodes[0], first);
  assert.equal(view.root.childNodes[1], code);
  assert.match(code.textContent, /a\nb$/);
  view.show("another text");
  assert.equal(view.root.textContent, "another text");
});

test("a text that changes the meaning of its last line is shown anew", () => {
  const view = new MarkdownView(new Element("div"));
  for (const text of ["para\n#", "para\n#5 is"]) view.show(text);
  assert.equal(view.root.html, "<div><p>para\n#5 is</p></div>");
});

// --- time ---

test("no text takes long", () => {
  const n = 20_000;
  const cases = ["*a ", "**a ", "_a", "[", "![", "`", "`a``", "(", "[a](", "$a ", "$", "\\(", "\\[", "<", "http://", "> ", "- ", "| ", "~~", "*a_ ", "a*", "*a*", "![a](b)",
    "1. ", "#", "\n\\[", "\n|a|\n|-|", "\n- a", "\n\n- a", "\n  - a\n", "- a\n\n\n", " ", "\n> a", "\\", "[a](https://x)", "***a**", "`|", "\n```"];
  for (const scrap of cases) {
    const text = scrap.repeat(n);
    const started = performance.now();
    const blocks = parseBlocks(text);
    for (const block of blocks.slice(0, 1000)) if (block.text && block.type === "paragraph") parseInline(block.text);
    const seconds = (performance.now() - started) / 1000;
    assert.ok(seconds < 3, `${JSON.stringify(scrap)} took ${seconds} s`);
  }
});

test("depth is bounded", () => {
  for (const scrap of ["> ", "- ", "*a ", "[", "1. "]) {
    const text = scrap.repeat(5000) + "x" + "*".repeat(5000) + "](https://x)".repeat(5000);
    assert.ok(root(text).textContent.length > 0);
  }
});
