// Files that become text in the prompt. Binary ones are refused in a sentence.

export const MAX_FILE_BYTES = 32_000_000; // about eight times the longest context

const KINDS = [
  ["25504446", "a PDF; copy its text, or convert it with pdftotext first"],
  ["504b0304", "a ZIP archive or an office document; unpack it or export it as text first"],
  ["1f8b", "a compressed file; unpack it first"],
  ["89504e47", "a picture, and this model reads text only"],
  ["ffd8ff", "a picture, and this model reads text only"],
  ["47494638", "a picture, and this model reads text only"],
  ["7f454c46", "a program"],
  ["4d5a90", "a program"],
];

/** {text} or {problem}, a sentence; `bytes` is a Uint8Array. */
export function textOf(name, bytes) {
  if (bytes.length === 0) return { problem: `${name} is empty.` };
  const start = [...bytes.subarray(0, 4)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const kind = KINDS.find(([magic]) => start.startsWith(magic));
  if (kind) return { problem: `${name} is ${kind[1]}.` };
  const encoding = start.startsWith("fffe") ? "utf-16le" : start.startsWith("feff") ? "utf-16be" : "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return { text: text.replaceAll("\r\n", "\n") };
  } catch {
    // not of this encoding
  }
  return { problem: `${name} is not text (UTF-8 or UTF-16), so the model cannot read it.` };
}

/** Reads a File of the browser: {name, size, text} or {problem}. */
export async function readFile(file) {
  const name = file.webkitRelativePath || file.name;
  if (file.size > MAX_FILE_BYTES) {
    return { problem: `${name} has ${Math.round(file.size / 1e6)} MB; a file may have ${MAX_FILE_BYTES / 1e6} MB.` };
  }
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    return { problem: `${name} cannot be read; a folder must be opened and its files chosen.` };
  }
  const { text, problem } = textOf(name, bytes);
  return problem ? { problem } : { name, size: file.size, text };
}
