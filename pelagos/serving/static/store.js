// What the page keeps, all of it in this browser: chats, messages and files in IndexedDB, settings in localStorage.
//
// Messages are records of their own, so two tabs with one chat add to it and never overwrite each other.

const NAME = "pelagos";
const VERSION = 1;

export const DEFAULTS = Object.freeze({
  model: null, // null: the server's first
  thinking: "high", // off, low, high, max
  temperature: null, // null: the server's default
  maxTokens: null,
  system: "",
  key: "",
  theme: "auto", // auto, light, dark
});
const THINKING = ["off", "low", "high", "max"];
const THEMES = ["auto", "light", "dark"];

/** Settings out of text from localStorage; what does not fit has its default. */
export function parseSettings(text) {
  let given = {};
  try {
    given = JSON.parse(text ?? "{}") ?? {};
  } catch {
    // a damaged entry is as good as none
  }
  const number = (value, low, high, whole) =>
    typeof value === "number" && value >= low && value <= high && (!whole || Number.isInteger(value)) ? value : null;
  const string = (value, otherwise) => (typeof value === "string" ? value : otherwise);
  return {
    model: string(given.model, null),
    thinking: THINKING.includes(given.thinking) ? given.thinking : DEFAULTS.thinking,
    temperature: number(given.temperature, 0, 2, false),
    maxTokens: number(given.maxTokens, 1, 1 << 24, true),
    system: string(given.system, ""),
    key: string(given.key, ""),
    theme: THEMES.includes(given.theme) ? given.theme : DEFAULTS.theme,
  };
}

export function loadSettings() {
  try {
    return parseSettings(localStorage.getItem(NAME));
  } catch {
    return { ...DEFAULTS };
  }
}

/** Whether the browser kept them. */
export function saveSettings(settings) {
  try {
    localStorage.setItem(NAME, JSON.stringify(settings));
    return true;
  } catch {
    return false;
  }
}

/** The store of this browser, or one in memory (`lasting` false) where pages may keep nothing. */
export async function openStore() {
  try {
    return new BrowserStore(await openDatabase());
  } catch {
    return new MemoryStore();
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      const database = request.result;
      database.createObjectStore("chats", { keyPath: "id" });
      database.createObjectStore("messages", { keyPath: "id" }).createIndex("chat", "chat");
      database.createObjectStore("files", { keyPath: "id" }).createIndex("chat", "chat");
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("another tab holds an older version"));
  });
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
const finished = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });

class BrowserStore {
  lasting = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close(); // a newer page in another tab may go on
  }

  chats() {
    return result(this.#read("chats").getAll());
  }

  chat(id) {
    return result(this.#read("chats").get(id));
  }

  messages(chat) {
    return result(this.#read("messages").index("chat").getAll(chat));
  }

  allMessages() {
    return result(this.#read("messages").getAll());
  }

  files(chat) {
    return result(this.#read("files").index("chat").getAll(chat));
  }

  /** Writes records in one go, such as {chats: [chat], messages: [message]}: all of them or none. */
  put(records) {
    const names = Object.keys(records);
    const transaction = this.database.transaction(names, "readwrite");
    for (const name of names) for (const record of records[name]) transaction.objectStore(name).put(record);
    const done = finished(transaction);
    transaction.commit(); // at once, or a page that closes now would lose it
    return done;
  }

  async remove(chat) {
    const transaction = this.database.transaction(["chats", "messages", "files"], "readwrite");
    transaction.objectStore("chats").delete(chat);
    for (const name of ["messages", "files"]) {
      const store = transaction.objectStore(name);
      const keys = store.index("chat").getAllKeys(chat);
      keys.onsuccess = () => keys.result.forEach((key) => store.delete(key));
    }
    return finished(transaction);
  }

  #read(name) {
    return this.database.transaction(name).objectStore(name);
  }
}

export class MemoryStore {
  lasting = false;
  #records = { chats: new Map(), messages: new Map(), files: new Map() };

  async chats() {
    return structuredClone([...this.#records.chats.values()]);
  }

  async chat(id) {
    return structuredClone(this.#records.chats.get(id));
  }

  async messages(chat) {
    return structuredClone([...this.#records.messages.values()].filter((message) => message.chat === chat));
  }

  async allMessages() {
    return structuredClone([...this.#records.messages.values()]);
  }

  async files(chat) {
    return structuredClone([...this.#records.files.values()].filter((file) => file.chat === chat));
  }

  async put(records) {
    for (const [name, list] of Object.entries(records)) {
      for (const record of list) this.#records[name].set(record.id, structuredClone(record));
    }
  }

  async remove(chat) {
    this.#records.chats.delete(chat);
    for (const name of ["messages", "files"]) {
      for (const [id, record] of this.#records[name]) if (record.chat === chat) this.#records[name].delete(id);
    }
  }
}
