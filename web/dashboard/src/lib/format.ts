// Figures, times and names as text.

export const LAMPORTS_PER_SOL = 1_000_000_000n;
const MINUS = "−";

/** Return lamports as SOL with at most `digits` decimals, rounded half away from zero. */
export function sol(lamports: bigint | number, digits = 6): string {
  const exact = typeof lamports === "bigint" ? lamports : BigInt(Math.round(lamports));
  const size = exact < 0n ? -exact : exact;
  const unit = 10n ** BigInt(9 - digits);
  const rounded = (size + unit / 2n) / unit;
  const scale = 10n ** BigInt(digits);
  const fraction = digits ? `.${(rounded % scale).toString().padStart(digits, "0")}` : "";
  const whole = group((rounded / scale).toString());
  if (rounded === 0n && size > 0n) return `${exact < 0n ? MINUS : ""}<${digits ? `0.${"0".repeat(digits - 1)}1` : "1"}`;
  return `${exact < 0n ? MINUS : ""}${whole}${fraction}`;
}

/** Return the exact amount, for a title. */
export function exactLamports(lamports: bigint | number): string {
  return `${integer(lamports)} lamports`;
}

/** Return an integer with thin spaces between groups of three digits. */
export function integer(value: bigint | number): string {
  const text = (typeof value === "bigint" ? value : Math.round(value)).toString();
  return text.startsWith("-") ? MINUS + group(text.slice(1)) : group(text);
}

function group(digits: string): string {
  return digits.replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");
}

/** Return a number with a bounded number of digits. */
export function number(value: number, digits = 3): string {
  if (!Number.isFinite(value)) return "–";
  if (value !== 0 && Math.abs(value) < 10 ** -digits) return small(value);
  if (Number.isInteger(value)) return integer(value);
  const [whole = "", fraction] = Math.abs(value).toFixed(digits).split(".");
  return `${value < 0 ? MINUS : ""}${group(whole)}${fraction ? `.${fraction}` : ""}`;
}

/** Return a number near zero with two significant digits. */
function small(value: number): string {
  const text = Math.abs(value) < 1e-6 ? Math.abs(value).toExponential(1).replace("-", MINUS) : Math.abs(value).toFixed(1 - Math.floor(Math.log10(Math.abs(value))));
  return `${value < 0 ? MINUS : ""}${text}`;
}

export const percent = (share: number, digits = 1): string => (Number.isFinite(share) ? `${(share * 100).toFixed(digits)} %` : "–");

/** Return a duration as its two largest units would be read: "12 s", "4 min", "3 h", "2 d". */
export function duration(ms: number): string {
  const s = Math.max(0, ms) / 1000;
  if (s < 1) return `${Math.round(s * 1000)} ms`;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 90 * 60) return `${Math.round(s / 60)} min`;
  if (s < 36 * 3600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} d`;
}

/** Return the age of a moment, without jitter below a second. */
export function age(ms: number): string {
  return ms < 1000 ? "now" : duration(ms);
}

export function bytes(count: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/** Return a moment: the time of day, with the date when it is not today. */
export function moment(ms: number, utc: boolean, options: { readonly ms?: boolean; readonly date?: boolean } = {}): string {
  const at = new Date(ms);
  if (Number.isNaN(at.getTime())) return "–";
  const part = (value: number, width = 2) => value.toString().padStart(width, "0");
  const [year, month, day] = utc
    ? [at.getUTCFullYear(), at.getUTCMonth() + 1, at.getUTCDate()]
    : [at.getFullYear(), at.getMonth() + 1, at.getDate()];
  const [h, m, s] = utc ? [at.getUTCHours(), at.getUTCMinutes(), at.getUTCSeconds()] : [at.getHours(), at.getMinutes(), at.getSeconds()];
  const time = `${part(h)}:${part(m)}:${part(s)}${options.ms ? `.${part(at.getUTCMilliseconds(), 3)}` : ""}`;
  const now = new Date();
  const today = utc ? at.toISOString().slice(0, 10) === now.toISOString().slice(0, 10) : at.toDateString() === now.toDateString();
  return options.date || !today ? `${year}-${part(month)}-${part(day)} ${time}` : time;
}

/** Return the beginning and the end of a long identifier. */
export function short(id: string, head = 6, tail = 4): string {
  return id.length > head + tail + 1 ? `${id.slice(0, head)}…${id.slice(-tail)}` : id;
}

/** Return `count` with the right form of a noun. */
export const plural = (count: number, one: string, many = `${one}s`): string => `${integer(count)} ${count === 1 ? one : many}`;

/** Return JSON in which bigint is a number of full precision. */
export function toJson(value: unknown, indent = 2): string {
  const marked = JSON.stringify(
    value,
    (_key, item: unknown) => (typeof item === "bigint" ? `\u0000${item}\u0000` : item),
    indent,
  );
  return marked.replace(/"\\u0000(-?\d+)\\u0000"/g, "$1");
}

/** Return the name of a field as words: `expected_profit_lamports` is "expected profit". */
export function label(field: string): string {
  return field.replace(/_(ns|lamports|ms|s)$/, "").replaceAll("_", " ");
}
