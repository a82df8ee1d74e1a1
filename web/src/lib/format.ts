/** Numbers, times and ids as people read them. Pure. */

/** `12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`; under ten seconds with one decimal. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return "–";
  const abs = Math.max(0, ms);
  if (abs < 1_000) return `${Math.round(abs)} ms`;
  if (abs < 9_950) return `${(abs / 1_000).toFixed(1)} s`;
  const s = Math.round(abs / 1_000);
  if (s < 60) return `${s} s`;
  if (s < 3_600) return pair(Math.floor(s / 60), "min", s % 60, "s");
  const min = Math.round(s / 60);
  if (min < 1_440) return pair(Math.floor(min / 60), "h", min % 60, "min");
  const h = Math.round(min / 60);
  return pair(Math.floor(h / 24), "d", h % 24, "h");
}

/** Two units, the second only where it says something. */
function pair(a: number, unit: string, b: number, smaller: string): string {
  return b === 0 ? `${a} ${unit}` : `${a} ${unit} ${b} ${smaller}`;
}

/** Whole units only, for something that changes once a second: `just now`, `12 s ago`, `in 4 s`. */
export function relative(at: number, now: number): string {
  const diff = at - now;
  const abs = Math.abs(diff);
  const future = diff > 0;
  if (abs < 1_000) return future ? "in 1 s" : "just now";
  // A countdown rounds up: "in 0 s" would say that it has happened.
  const s = future ? Math.ceil(abs / 1_000) : Math.floor(abs / 1_000);
  const word = coarse(s);
  return future ? `in ${word}` : `${word} ago`;
}

function coarse(s: number): string {
  if (s < 60) return `${s} s`;
  if (s < 3_600) return `${Math.floor(s / 60)} min`;
  if (s < 86_400) return `${Math.floor(s / 3_600)} h`;
  return `${Math.floor(s / 86_400)} d`;
}

/** `2026-11-21 09:44:50.123 UTC`, or in the reader's zone with its name. */
export function absolute(at: number, zone: "local" | "utc", millis = true): string {
  if (!Number.isFinite(at)) return "–";
  const date = new Date(at);
  const parts = new Intl.DateTimeFormat("en-GB", {
    year: "numeric",
    month: "2-digit",
    day: "2-digit",
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hourCycle: "h23",
    timeZoneName: "short",
    ...(zone === "utc" ? { timeZone: "UTC" } : {}),
  }).formatToParts(date);
  const get = (type: string) => parts.find((p) => p.type === type)?.value ?? "";
  const fraction = millis ? `.${String(date.getUTCMilliseconds()).padStart(3, "0")}` : "";
  return `${get("year")}-${get("month")}-${get("day")} ${get("hour")}:${get("minute")}:${get("second")}${fraction} ${get("timeZoneName")}`;
}

/** The time of day alone, for places where the day is plain. */
export function timeOfDay(at: number, zone: "local" | "utc", millis = false): string {
  return absolute(at, zone, millis).split(" ").slice(1).join(" ");
}

/** A long id shortened in the middle: `01a93f2c…7e21`. */
export function shortId(id: string): string {
  return id.length <= 16 ? id : `${id.slice(0, 8)}…${id.slice(-4)}`;
}

export function percent(fraction: number): string {
  return `${Math.round(Math.min(1, Math.max(0, fraction)) * 100)} %`;
}

export function bytes(n: number): string {
  if (n < 1_000) return `${n} B`;
  const units = ["kB", "MB", "GB", "TB"];
  let value = n;
  let unit = -1;
  do {
    value /= 1_000;
    unit += 1;
  } while (value >= 999.5 && unit < units.length - 1);
  return `${value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}

export function usd(amount: number): string {
  const digits = amount !== 0 && Math.abs(amount) < 0.01 ? 4 : 2;
  return `$${amount.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })}`;
}

export function count(n: number): string {
  return n.toLocaleString("en-US");
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
export function isId(text: string): boolean {
  return UUID.test(text.trim());
}
