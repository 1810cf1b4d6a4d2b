// The page: what the user does goes to the chats, and what changes in them is drawn.

import { countTokens, listModels } from "./api.js";
import { Chats } from "./chats.js";
import { Composer, meterNodes } from "./composer.js";
import { askText, confirmed, editSettings } from "./dialogs.js";
import { element } from "./dom.js";
import { toJson, toMarkdown } from "./exporting.js";
import { count } from "./format.js";
import { chatsWith, Sidebar } from "./sidebar.js";
import { loadSettings, openStore, saveSettings } from "./store.js";
import { Thread } from "./thread.js";

const EXAMPLES = [
  "What does this code do? Where could it fail?",
  "Sum up this text in five sentences.",
  "Explain how a cache works, with a small example in Python.",
];
const NEAR_END = 80; // pixels from the end within which the page follows the text
const DRAFT = "pelagos-draft";

const by = (id) => document.getElementById(id);
const settings = loadSettings();
let models = [];
let edited = null; // the message that is edited
let chats, composer, sidebar, thread;
let follow = true;
let frame = null;
const changed = new Set();

// --- drawing: once per frame, however many pieces come in it ---

function draw(message) {
  if (message === null) changed.clear();
  changed.add(message);
  if (frame !== null) return;
  // a hidden page draws no frames
  frame = document.hidden ? setTimeout(drawNow, 250) : requestAnimationFrame(drawNow);
}

function drawNow() {
  frame = null;
  if (changed.has(null)) drawAll();
  else for (const message of changed) thread.update(message, chats.about(message));
  changed.clear();
  say();
  if (follow) toEnd();
}

function drawAll() {
  const { current, path } = chats;
  thread.show(path, (message) => chats.about(message));
  sidebar.show([...chats.all.values()], current.id, chats.writing);
  by("title").textContent = current.title;
  document.title = path.length ? `${current.title} – Pelagos` : "Pelagos";
  by("welcome").hidden = path.length > 0;
  const stored = chats.all.has(current.id);
  for (const id of ["rename", "export-markdown", "export-json", "delete"]) by(id).disabled = !stored;
  by("send").hidden = chats.answer !== null;
  by("stop").hidden = chats.answer === null;
  by("editing").hidden = edited === null;
  drawMeter();
}

/** What the next request reads, as far as it is known: the last answer's count, the files, and about what is typed. */
function drawMeter() {
  const limit = models.find((model) => model.id === chosenModel())?.contextLength;
  const path = edited ? chats.path.slice(0, chats.path.indexOf(edited)) : chats.path;
  const usage = path.findLast((message) => message.usage)?.usage;
  const before = usage ? usage.prompt_tokens + usage.completion_tokens : 0;
  const files = composer.files.reduce((sum, file) => sum + (file.tokens ?? 0), 0);
  const used = before + files + Math.ceil(composer.text.length / 4);
  by("meter").replaceChildren(...(limit ? meterNodes(used, limit) : []));
  by("meter").title = limit ? `About ${count(used)} of ${count(limit)} tokens` : "";
  by("meter").classList.toggle("full", Boolean(limit) && used > limit);
  by("advice").textContent = advice(path, used, limit, before);
}

function advice(path, used, limit, before) {
  const last = path.findLast((message) => message.role === "assistant");
  if (limit && used > limit) return "This is longer than the model's context.";
  if (last && last.thinking !== settings.thinking && before > 2000) {
    return "Another level of thinking makes the model read the whole chat again.";
  }
  return "";
}

// For screen readers: what happens, and not each word of it.
let said = "";
function say() {
  const message = chats.messages.get(chats.current.leaf);
  let now = "";
  if (message?.role === "assistant") {
    if (message.status === "streaming") now = message.content ? "Answering" : message.reasoning ? "Thinking" : "Waiting for the server";
    else if (message.status === "done") now = "The answer is complete";
    else now = message.error?.message ?? "The answer stopped";
  }
  if (now !== said) by("status").textContent = now;
  said = now;
}

function toEnd() {
  by("scroll").scrollTop = by("scroll").scrollHeight;
}

function chosenModel() {
  return models.some((model) => model.id === settings.model) ? settings.model : (models[0]?.id ?? settings.model);
}

function drawModels() {
  const chosen = chosenModel();
  const known = models.length ? models.map((model) => model.id) : [chosen ?? "no model"];
  by("model").replaceChildren(...known.map((id) => element("option", { value: id, selected: id === chosen }, id)));
  by("model").disabled = models.length < 2;
  const isNano = /(^|[-/])nano($|-)/.test(chosen ?? "");
  by("small-print").textContent = isNano
    ? "nano is a tiny demonstration model: it shows how everything works, and knows next to nothing."
    : chosen
      ? `${chosen} answers, on this server. It can be wrong: check what matters.`
      : "";
}

function applyTheme() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

// --- the server and its models ---

async function connect() {
  try {
    models = await listModels(settings.key);
    by("banner").hidden = true;
  } catch (error) {
    const button = error.status === 401 ? ["Open settings", changeSettings] : ["Try again", connect];
    by("banner").replaceChildren(
      element("span", {}, error.message),
      element("button.text-button", { type: "button", onclick: button[1] }, button[0]),
    );
    by("banner").hidden = false;
  }
  drawModels();
  drawMeter();
}

async function changeSettings() {
  const changedSettings = await editSettings(settings);
  if (changedSettings === null) return;
  const keyChanged = changedSettings.key !== settings.key;
  Object.assign(settings, changedSettings);
  if (chats.current.leaf === null) chats.current.system = settings.system;
  keepSettings();
  applyTheme();
  if (keyChanged) await connect();
}

function keepSettings() {
  if (!saveSettings(settings)) by("hint").textContent = "This browser does not keep the settings.";
}

// --- what the user does ---

async function act(work) {
  try {
    await work();
  } catch (error) {
    tell(error);
  }
}

function tell(error) {
  console.error(error);
  by("hint").textContent =
    error.name === "QuotaExceededError" ? "The browser has no room left, so this is not kept: delete old chats." : error.message;
}

async function send() {
  if (composer.isEmpty || chats.answer) return;
  if (composer.files.some((file) => file.tokens === null)) await Promise.race([counted(), pause(1500)]);
  const [text, files] = [composer.text.trim(), composer.files];
  const parent = edited ? edited.parent : chats.current.leaf;
  edited = null;
  composer.fill("");
  keepNewDraft("");
  follow = true;
  const answered = chats.send(text, files, chosenModel(), parent);
  if (location.hash.slice(1) !== chats.current.id) history.pushState(null, "", `#${chats.current.id}`);
  await answered;
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function counted() {
  while (composer.files.some((file) => file.tokens === null)) await pause(50);
}

function startEdit(message) {
  edited = message;
  const files = message.files.map((file) => ({ ...file, text: chats.texts.get(file.id) ?? "", about: false }));
  composer.fill(message.text, files);
  composer.field.focus();
  draw(null);
}

function cancelEdit() {
  edited = null;
  composer.fill(chats.current.draft);
  draw(null);
}

async function openFromAddress() {
  showSidebar(false);
  by("chat-menu").open = false;
  if (chats.current.id !== location.hash.slice(1)) {
    edited = null;
    if (!location.hash || !(await chats.open(location.hash.slice(1)))) startNew(false);
    else composer.fill(chats.current.draft);
  }
  follow = true;
  if (!matchMedia("(pointer: coarse)").matches) composer.field.focus();
}

function startNew(byUser = true) {
  edited = null;
  if (byUser && location.hash) history.pushState(null, "", location.pathname);
  chats.startNew();
  composer.fill(readNewDraft());
  showSidebar(false);
  composer.field.focus();
}

function readNewDraft() {
  try {
    return localStorage.getItem(DRAFT) ?? "";
  } catch {
    return "";
  }
}

function keepNewDraft(text) {
  try {
    localStorage.setItem(DRAFT, text);
  } catch {
    // a browser that keeps nothing keeps no drafts
  }
}

let draftTimer = null;
function keepDraft() {
  clearTimeout(draftTimer);
  if (edited) return;
  const [chat, text] = [chats.current, composer.text];
  draftTimer = setTimeout(() => {
    if (!chats.all.has(chat.id)) keepNewDraft(text);
    else if (chat.draft !== text) chats.change(chat, { draft: text });
  }, 400);
}

async function rename(chat) {
  const title = await askText({ title: "Rename chat", label: "Title", value: chat.title, ok: "Rename" });
  if (title?.trim()) await chats.change(chat, { title: title.trim().slice(0, 200), named: true });
}

async function remove(chat) {
  const sure = await confirmed({ title: "Delete this chat?", text: `“${chat.title}” and its files cannot be brought back.`, ok: "Delete" });
  if (!sure) return;
  const wasOpen = chats.current.id === chat.id;
  await chats.remove(chat);
  if (wasOpen) startNew();
}

async function changeSystem() {
  const text = "Said to the model before everything else. A change makes it read the whole chat again.";
  const system = await askText({ title: "System prompt of this chat", text, label: "System prompt", value: chats.current.system, ok: "Save", rows: 6 });
  if (system !== null) await chats.change(chats.current, { system });
}

function download(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function exportAs(kind) {
  const { current, messages, texts } = chats;
  const name = current.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat";
  if (kind === "json") download(`${name}.json`, "application/json", toJson(current, messages, texts));
  else download(`${name}.md`, "text/markdown", toMarkdown(current, messages, texts));
}

function importChat() {
  const input = element("input", { type: "file", accept: ".json,application/json" });
  input.addEventListener("change", () => act(async () => (location.hash = await chats.bringIn(await input.files[0].text()))));
  input.click();
}

function showSidebar(open) {
  document.body.classList.toggle("sidebar-open", open);
  by("open-sidebar").setAttribute("aria-expanded", String(open));
}

// --- wiring ---

function listen() {
  const on = (id, event, action) => by(id).addEventListener(event, action);
  on("new-chat", "click", () => startNew());
  on("open-settings", "click", () => act(changeSettings));
  on("open-sidebar", "click", () => (showSidebar(true), by("new-chat").focus()));
  on("close-sidebar", "click", () => (showSidebar(false), by("open-sidebar").focus()));
  on("shade", "click", () => showSidebar(false));
  on("cancel-edit", "click", cancelEdit);
  on("rename", "click", () => act(() => rename(chats.current)));
  on("system", "click", () => act(changeSystem));
  on("export-markdown", "click", () => exportAs("markdown"));
  on("export-json", "click", () => exportAs("json"));
  on("import-json", "click", importChat);
  on("delete", "click", () => act(() => remove(chats.current)));
  on("to-end", "click", () => ((follow = true), toEnd()));
  on("model", "change", (event) => ((settings.model = event.target.value), keepSettings(), drawModels(), drawMeter()));
  on("thinking", "change", (event) => ((settings.thinking = event.target.value), keepSettings(), drawMeter()));
  on("scroll", "scroll", () => {
    const { scrollHeight, scrollTop, clientHeight } = by("scroll");
    follow = scrollHeight - scrollTop - clientHeight < NEAR_END;
    by("to-end").hidden = follow;
  });
  document.addEventListener("click", (event) => {
    const menu = by("chat-menu");
    if (menu.open && !event.target.closest("summary")) menu.open = false;
  });
  document.addEventListener("keydown", shortcut);
  addEventListener("hashchange", () => act(openFromAddress));
  addEventListener("popstate", () => act(openFromAddress));
  addEventListener("pagehide", () => chats.saveNow());
  setInterval(tick, 500);
}

/** Times run on where the server says nothing. */
function tick() {
  for (const { message } of chats.answers.values()) if (message.chat === chats.current.id) draw(message);
}

function shortcut(event) {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
    event.preventDefault();
    showSidebar(true);
    by("search").focus();
    by("search").select();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (by("chat-menu").open) by("chat-menu").open = false;
    else if (document.body.classList.contains("sidebar-open")) showSidebar(false);
    else if (chats.answer) chats.answer.stop();
    else if (edited) cancelEdit();
  }
}

async function start() {
  applyTheme();
  by("thinking").value = settings.thinking;
  const store = await openStore();
  chats = new Chats(store, settings, draw, tell);
  thread = new Thread(by("thread"), {
    edit: startEdit,
    again: (message) => act(() => ((follow = true), chats.again(message, chosenModel()))),
    proceed: (message) => act(() => ((follow = true), chats.proceed(message, chosenModel()))),
    turn: (message, step) => act(() => chats.turn(message, step)),
    openSettings: () => act(changeSettings),
  });
  const findMessages = async (words) => chatsWith(await store.allMessages(), words);
  sidebar = new Sidebar({ list: by("chats"), search: by("search"), findMessages }, {
    rename: (chat) => act(() => rename(chat)),
    remove: (chat) => act(() => remove(chat)),
  });
  composer = new Composer({
    send: () => act(send),
    stop: () => chats.answer?.stop(),
    changed: () => (drawMeter(), keepDraft()),
    countTokens: (text) => countTokens(text, settings.key),
  });
  by("examples").append(
    ...EXAMPLES.map((text) => element("button", { type: "button", onclick: () => (composer.fill(text), composer.field.focus()) }, text)),
  );
  listen();
  await chats.load();
  await openFromAddress();
  drawAll();
  await connect();
  if (!store.lasting) by("hint").textContent = "This browser keeps nothing for this page: chats are lost when it is closed.";
}

start();
