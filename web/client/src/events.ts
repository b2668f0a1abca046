import { fromBinary, type MessageShape } from "@bufbuild/protobuf";
import {
  AgentMetricsSchema,
  ArbitrageSchema,
  BundleSchema,
  JobSchema,
  LiquidationSchema,
  OpportunitySchema,
  SandwichSchema,
  ScoreSchema,
  TickSchema,
} from "./gen/mev/v1/events_pb.js";
import { FrameSchema } from "./gen/mev/v1/stream_pb.js";

/** Every event type, by the name that topics, tables and URLs have. */
export const EVENT_SCHEMAS = {
  agent_metrics: AgentMetricsSchema,
  arbitrage: ArbitrageSchema,
  bundle: BundleSchema,
  job: JobSchema,
  liquidation: LiquidationSchema,
  opportunity: OpportunitySchema,
  sandwich: SandwichSchema,
  score: ScoreSchema,
  tick: TickSchema,
} as const;

export type EventType = keyof typeof EVENT_SCHEMAS;
export type EventMessage<T extends EventType> = MessageShape<(typeof EVENT_SCHEMAS)[T]>;

/** One event: which, where it lies in the log, when it was published (ms, 0 when unknown), and its message (64-bit integers are bigint). */
export type StreamEvent<T extends EventType = EventType> = {
  [K in T]: { readonly type: K; readonly partition: number; readonly offset: bigint; readonly publishedMs: number; readonly message: EventMessage<K> };
}[T];

/** One event type, partition and the offset behind its last event of a frame. */
export interface Step {
  readonly type: string;
  readonly partition: number;
  readonly next: number;
}

/** A frame of the wire, decoded; only plain objects, so that a worker can send it. */
export interface DecodedFrame {
  readonly subscription: string;
  readonly sequence: number;
  readonly dropped: number;
  /** Events that the server dropped in all; 0 when it does not say. */
  readonly droppedTotal: number;
  /** Where to go on behind it, as a token for `from`; empty for a datagram. */
  readonly resume: string;
  readonly queued: number;
  readonly lagMs: number;
  readonly sentAtNs: bigint;
  /** In a frame of a snapshot: how many events of it are still to come. */
  readonly snapshotLeft: number | null;
  /** How many events it carries, those that could not be decoded included. */
  readonly count: number;
  readonly events: StreamEvent[];
  readonly steps: Step[];
  /** Why events could not be decoded, one line each. */
  readonly undecodable: string[];
}

const TOPIC = /^mev\.(.+)\.v\d+$/;

/** Decode one `mev.v1.Frame` and the events in it. */
export function decodeFrame(bytes: Uint8Array): DecodedFrame {
  const frame = fromBinary(FrameSchema, bytes);
  const events: StreamEvent[] = [];
  const steps: Step[] = [];
  const undecodable: string[] = [];
  let count = 0;
  for (const slice of frame.slices) {
    const type = TOPIC.exec(slice.topic)?.[1] ?? slice.topic;
    const schema = EVENT_SCHEMAS[type as EventType] as (typeof EVENT_SCHEMAS)[EventType] | undefined;
    let offset = slice.firstOffset;
    let publishedMs = Number(slice.firstPublishedMs);
    slice.events.forEach((value, index) => {
      if (index > 0) {
        offset += BigInt(slice.offsetStep[index - 1] ?? 1);
        publishedMs += Number(slice.publishedStepMs[index - 1] ?? 0);
      }
      try {
        if (!schema) throw new Error("this client does not know the event type");
        const event = { type, partition: slice.partition, offset, publishedMs, message: fromBinary(schema, value) };
        events.push(event as StreamEvent);
      } catch (error) {
        undecodable.push(`${type}/${slice.partition}@${offset}: ${error instanceof Error ? error.message : String(error)}`);
      }
    });
    count += slice.events.length;
    // A slice without events says how far the server has looked.
    steps.push({ type, partition: slice.partition, next: Number(offset) + (slice.events.length ? 1 : 0) });
  }
  return {
    subscription: frame.subscription,
    sequence: Number(frame.sequence),
    dropped: Number(frame.dropped),
    droppedTotal: Number(frame.droppedTotal),
    resume: frame.resume,
    queued: Number(frame.queued),
    lagMs: frame.lagMs,
    sentAtNs: frame.sentAtNs,
    snapshotLeft: frame.snapshotLeft === undefined ? null : Number(frame.snapshotLeft),
    count,
    events,
    steps,
    undecodable,
  };
}
