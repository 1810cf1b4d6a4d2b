// Questions to the user, and the settings: both are <dialog>s, which keep the focus and close with Esc.

const by = (id) => document.getElementById(id);

/** Waits until a dialog closes; "" means that it was left with Esc. */
function closed(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true }));
}

/** Asks for a text; null if the user went away. */
export async function askText({ title, text = "", label, value, ok, rows = 1 }) {
  const input = by("ask-input");
  fillAsk({ title, text, ok, danger: false });
  by("ask-label").textContent = label;
  input.parentElement.hidden = false;
  input.rows = rows;
  input.value = value;
  input.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && rows === 1) {
      event.preventDefault();
      by("ask-ok").click();
    }
  };
  queueMicrotask(() => input.select());
  return (await closed(by("ask"))) === "ok" ? input.value : null;
}

export async function confirmed({ title, text, ok }) {
  fillAsk({ title, text, ok, danger: true });
  by("ask-input").parentElement.hidden = true;
  return (await closed(by("ask"))) === "ok";
}

function fillAsk({ title, text, ok, danger }) {
  by("ask-title").textContent = title;
  by("ask-text").textContent = text;
  by("ask-text").hidden = text === "";
  by("ask-ok").textContent = ok;
  by("ask-ok").classList.toggle("danger", danger);
}

/** The settings as the user left them, or null if they were not saved. */
export async function editSettings(settings) {
  const form = by("settings").querySelector("form");
  const { temperature, maxTokens, system, key, theme } = form.elements;
  temperature.value = settings.temperature ?? "";
  maxTokens.value = settings.maxTokens ?? "";
  system.value = settings.system;
  key.value = settings.key;
  theme.value = settings.theme;
  if ((await closed(by("settings"))) !== "save") return null;
  const number = (input) => (input.value === "" ? null : input.valueAsNumber);
  return {
    ...settings,
    temperature: number(temperature),
    maxTokens: number(maxTokens),
    system: system.value,
    key: key.value.trim(),
    theme: theme.value,
  };
}
