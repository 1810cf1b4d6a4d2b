// Numbers, sizes and times as people read them.

export function count(number) {
  return Math.round(number).toLocaleString("en-US");
}

export function tokens(number) {
  return `${count(number)} ${number === 1 ? "token" : "tokens"}`;
}

/** 0.4 s, 12 s, 3 min 5 s */
export function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function rate(perSecond) {
  return `${perSecond < 10 ? perSecond.toPrecision(2) : Math.round(perSecond)} tokens/s`;
}

export function bytes(size) {
  if (size < 1000) return `${size} B`;
  for (const [unit, scale] of [["kB", 1e3], ["MB", 1e6], ["GB", 1e9]]) {
    const value = size / scale;
    if (value < 999.5) return `${value < 9.95 ? value.toFixed(1) : Math.round(value)} ${unit}`;
  }
  return `${(size / 1e12).toFixed(1)} TB`;
}

/** A name for a chat: the first line of its first message, cut at a word. */
export function titleOf(text, most = 60) {
  const line = text.trim().split("\n", 1)[0].replace(/^[#>*\-\s]+/, "").trim();
  if (line.length <= most) return line || "New chat";
  const cut = [...line].slice(0, most).join("");
  const space = cut.lastIndexOf(" ");
  return `${(space > most / 2 ? cut.slice(0, space) : cut).trimEnd()}…`;
}

/** Which heading of the list a chat stands under. */
export function age(time, now = Date.now()) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const days = Math.ceil((midnight - time) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  if (days <= 7) return "Last 7 days";
  if (days <= 30) return "Last 30 days";
  return "Older";
}
