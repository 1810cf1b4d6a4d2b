// Server-sent events out of text that comes in any pieces, comments too: the server tells its progress in them.

export class EventParser {
  #rest = "";
  #data = [];

  /** Takes the next piece; returns what it completes: {data} for an event, {comment} for a comment line. */
  push(text) {
    this.#rest += text;
    const found = [];
    let start = 0;
    for (;;) {
      const end = this.#lineEnd(start);
      if (end === null) break;
      this.#line(this.#rest.slice(start, end.stop), found);
      start = end.next;
    }
    this.#rest = this.#rest.slice(start);
    return found;
  }

  // A line ends with LF, CR LF or CR. A CR at the very end waits: its LF may be on the way.
  #lineEnd(start) {
    for (let i = start; i < this.#rest.length; i += 1) {
      const char = this.#rest[i];
      if (char === "\n") return { stop: i, next: i + 1 };
      if (char === "\r") {
        if (i + 1 === this.#rest.length) return null;
        return { stop: i, next: this.#rest[i + 1] === "\n" ? i + 2 : i + 1 };
      }
    }
    return null;
  }

  #line(line, found) {
    if (line === "") {
      if (this.#data.length) found.push({ data: this.#data.join("\n") });
      this.#data = [];
    } else if (line.startsWith(":")) {
      found.push({ comment: line.slice(1).trim() });
    } else if (line.startsWith("data:")) {
      this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    } // event names, ids and retry times are not used
  }
}
