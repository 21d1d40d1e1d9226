// Numbers as people read them, and small helpers for the document. Texts of servers go in as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

// Writes only what has changed: nothing is laid out again for the rest.
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Making a format costs far more than using it.
const formats = Array.from({ length: 3 }, (_, digits) => [false, true].map((fixed) =>
  new Intl.NumberFormat("en", { minimumFractionDigits: fixed ? digits : 0, maximumFractionDigits: digits })));
const format = (value, digits, fixed = false) => formats[digits][Number(fixed)].format(value);

export const whole = (value) => format(Math.round(value), 0);

// aligned: with decimals even where they are zeros, for columns.
export function bytes(value, aligned = false) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) { value /= 1024; ++unit; }
  const digits = unit === 0 || (Number.isInteger(value) && !aligned) || value >= 100 ? 0 : value < 10 ? 2 : 1;
  return `${format(value, digits, true)} ${units[unit]}`;
}

export function percent(share) {
  if (share > 0 && share < 0.001) return "under 0.1 %";
  return `${format(share * 100, share < 0.1 ? 1 : 0)} %`;
}

export const rate = (value) => (value === null ? "–" : format(value, value < 10 ? 1 : 0));

export function duration(ms) {
  if (ms < 10000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`;
}

export const ago = (ms) => (ms < 2000 ? "just now" : `${duration(ms)} ago`);

export const times = (ratio) => `${format(ratio, ratio < 10 ? 1 : 0)}×`;

// "2 of 8 heads hold keys and values"
export function headsText(model) {
  return `${model.kv_heads} of ${model.query_heads} heads ${model.kv_heads === 1 ? "holds" : "hold"} keys and values`;
}
