// Events as rows of a table: one shape for all types.
import type { EventMessage, EventType, StreamEvent } from "@mev/client";
import { number, short } from "./format";

export interface Row {
  readonly atMs: number;
  readonly type: string;
  readonly what: string;
  readonly where: string;
  /** Profit in lamports; null when there is none, or it is in another token. */
  readonly profit: bigint | null;
  readonly expected: boolean;
  /** The profit in another token, as text. */
  readonly other: string;
  readonly tip: bigint | null;
  readonly slot: bigint | null;
  readonly who: string;
  readonly good: boolean | null;
  readonly simulated: boolean;
}

export const SOL_MINT = "So11111111111111111111111111111111111111112";
const TOKENS: Record<string, string> = {
  [SOL_MINT]: "SOL",
  EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v: "USDC",
  Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB: "USDT",
  DezXAZ8z7PnrnRJjz3wXBoRgixCa6xjnB7YaB1pPB263: "BONK",
  J1toso1uCk3RLmjorhTtrVwY9HJ7X8V9yYac6Y7kGCPn: "JitoSOL",
  mSoLzYCxHdYgdzU16g5QSh3i5K3z3KZK7ytfqcJm7So: "mSOL",
  "7vfCXTUXx5WJV5JADk17DUJ4ksgau7utNKj4b963voxs": "ETH",
};

export const TYPE_TITLES: Record<string, string> = {
  opportunity: "Opportunities",
  arbitrage: "Arbitrages",
  sandwich: "Sandwiches",
  liquidation: "Liquidations",
  bundle: "Bundles",
  tick: "Ticks",
};

export const tokenName = (mint: string): string => TOKENS[mint] ?? short(mint, 4, 4);

const EMPTY = { profit: null, expected: false, other: "", tip: null, slot: null, who: "", good: null, simulated: false, where: "", what: "" };

/** Return the row of an event. */
export function rowOf(event: StreamEvent): Row {
  const base = { ...EMPTY, atMs: event.publishedMs, type: event.type as string };
  const { message } = event;
  switch (event.type) {
    case "opportunity":
      return { ...base, ...opportunity(message as EventMessage<"opportunity">) };
    case "bundle":
      return { ...base, ...bundle(message as EventMessage<"bundle">) };
    case "tick":
      return { ...base, ...tick(message as EventMessage<"tick">) };
    case "arbitrage":
    case "sandwich":
    case "liquidation":
      return { ...base, ...onChain(event.type, message as OnChain) };
    default:
      return { ...base, what: event.type };
  }
}

function opportunity(message: EventMessage<"opportunity">): Partial<Row> {
  return {
    what: message.kind,
    where: message.route.map((step) => step.dex).join(" → "),
    profit: message.expectedProfitLamports,
    expected: true,
    tip: message.tipLamports,
    slot: message.slot,
    who: message.agentId,
    simulated: message.simulated,
  };
}

function bundle(message: EventMessage<"bundle">): Partial<Row> {
  return {
    what: message.landed ? "landed" : "not landed",
    where: message.error,
    profit: message.profitLamports,
    tip: message.tipLamports,
    slot: message.slot,
    who: message.agentId,
    good: message.landed,
    simulated: message.simulated,
  };
}

function tick(message: EventMessage<"tick">): Partial<Row> {
  return { what: message.marketId, where: `bid ${price(message.bidPrice)} · ask ${price(message.askPrice)}`, simulated: message.simulated };
}

const price = (value: number): string => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(4) : number(value, 4));

type OnChain = EventMessage<"arbitrage"> | EventMessage<"sandwich"> | EventMessage<"liquidation">;

function onChain(type: string, message: OnChain): Partial<Row> {
  const inSol = message.profitMint === SOL_MINT;
  return {
    what: type,
    where: message.venues.join(" → "),
    profit: inSol ? message.profitAmount : null,
    other: inSol || !message.profitMint ? "" : `${units(message.profitAmount, message.profitDecimals)} ${tokenName(message.profitMint)}`,
    tip: message.tipLamports,
    slot: message.slot,
    who: short(message.signer),
  };
}

/** Return base units of a token as a decimal amount. */
export function units(amount: bigint, decimals: number): string {
  const size = amount < 0n ? -amount : amount;
  const scale = 10n ** BigInt(decimals);
  const fraction = (size % scale).toString().padStart(decimals, "0").slice(0, 6).replace(/0+$/, "");
  return `${amount < 0n ? "−" : ""}${size / scale}${fraction ? `.${fraction}` : ""}`;
}

/** Return the name that a field has in messages: `slot_time_ns` is `slotTimeNs`. */
export const camel = (name: string): string => name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());

/** Return the name that a field has in the protocol. */
export const snake = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** Return a message as the API would return it: protocol names, without internals. */
export function plainMessage(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(plainMessage);
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).filter(([name]) => !name.startsWith("$"));
  return Object.fromEntries(entries.map(([name, item]) => [snake(name), plainMessage(item)]));
}

export type { EventType };
