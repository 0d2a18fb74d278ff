/** Numbers, times and ids as people read them. What has no value is an en dash. */

export const NOTHING = "–";
const MINUS = "−";
const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const TWO = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

const LARGE = [
  [1e15, 1e15, "P"],
  [1e12, 1e12, "T"],
  [1e9, 1e9, "G"],
  [1e7, 1e6, "M"],
];

/** How many there are. Sums of weights may be fractions. */
export function count(value) {
  if (!Number.isFinite(value)) return special(value);
  for (const [from, unit, name] of LARGE)
    if (Math.abs(value) >= from) return `${(value / unit).toPrecision(4)} ${name}`;
  return (Number.isInteger(value) ? WHOLE : TWO).format(value);
}

/** How many there are, with what they are. */
export function counted(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** How many a second. */
export function rate(value) {
  if (!(value > 0)) return "0";
  if (value < 0.01) return "<0.01";
  if (value < 10) return value.toFixed(value < 1 ? 2 : 1);
  return count(Math.round(value));
}

/** A measured value, to some digits. */
export function number(value, digits = 4) {
  if (!Number.isFinite(value)) return special(value);
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e6 || size < 1e-4
      ? size
          .toExponential(digits - 1)
          .replace(/\.?0+e/, "e")
          .replace("e+", "e")
          .replace("e-", `e${MINUS}`)
      : Number(size.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 12 });
  return value < 0 ? MINUS + text : text;
}

/** A value as it is: the shortest digits that read back as the same float64. */
export function exact(value) {
  return value === undefined || value === null ? NOTHING : String(value);
}

function special(value) {
  if (value === Infinity) return "∞";
  if (value === -Infinity) return `${MINUS}∞`;
  return "NaN";
}

/** How long a call took; 0 is that there was none. */
export function took(seconds) {
  if (!(seconds > 0)) return NOTHING;
  if (seconds < 0.001) return `${(seconds * 1e6).toFixed(0)} µs`;
  if (seconds < 1) return `${(seconds * 1e3).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

/** A stretch of time, in its two largest units. */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([amount]) => amount > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([amount]) => amount > 0)
    .map(([amount, unit]) => `${amount} ${unit}`)
    .join(" ");
}

/** How long ago, in the largest unit. */
export function ago(seconds) {
  if (!Number.isFinite(seconds)) return NOTHING;
  if (seconds < 1.5) return "now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const MINUTE = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const FULL = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** The time of the day. */
export const clock = (milliseconds) => CLOCK.format(milliseconds);
/** Day and time. */
export const moment = (milliseconds) => (Number.isFinite(milliseconds) ? FULL.format(milliseconds) : NOTHING);
/** A time on an axis whose marks are so many seconds apart. */
export function tick(seconds, apart) {
  return (apart >= 86400 ? DAY : apart >= 60 ? MINUTE : CLOCK).format(seconds * 1000);
}

/** Bytes, in units of 1024. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? value.toFixed(0) : value.toFixed(1)} ${units[unit]}`;
}
