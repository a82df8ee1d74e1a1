/** The ledger as a grid: rows events, columns destinations. Pure. */
import type { EventDeliveries, Leg, LegState } from "../api/types";

export interface Column {
  key: string;
  kind: Leg["kind"];
  name: string;
  label: string;
}

const BROKERS = ["rabbitmq", "kafka", "nats"];
const CONSUMERS = ["orchestrator", "audit", "metrics"];
const LABEL: Record<string, string> = { rabbitmq: "RabbitMQ", kafka: "Kafka", nats: "NATS" };

/** The three brokers always, the consumers that have a leg here; known ones in their usual order. */
export function columns(items: EventDeliveries[]): Column[] {
  const consumers = new Set<string>();
  const brokers = new Set<string>(BROKERS);
  for (const item of items)
    for (const leg of item.legs) (leg.kind === "broker" ? brokers : consumers).add(leg.name);
  return [
    ...[...brokers].sort(by(BROKERS)).map((name) => column("broker", name)),
    ...[...consumers].sort(by(CONSUMERS)).map((name) => column("consumer", name)),
  ];
}

function column(kind: Leg["kind"], name: string): Column {
  return { key: `${kind}:${name}`, kind, name, label: LABEL[name] ?? `${name[0]?.toUpperCase() ?? ""}${name.slice(1)}` };
}

function by(order: string[]): (a: string, b: string) => number {
  const rank = (name: string) => (order.includes(name) ? order.indexOf(name) : order.length);
  return (a, b) => rank(a) - rank(b) || a.localeCompare(b);
}

/** An event may have several legs to one broker (two exchanges, say): they share a cell. */
export function legsAt(item: EventDeliveries, at: Column): Leg[] {
  return item.legs.filter((leg) => leg.kind === at.kind && leg.name === at.name);
}

const GRAVITY: Record<LegState, number> = {
  dead: 5,
  parked: 4,
  retrying: 3,
  pending: 2,
  done: 1,
  skipped: 0,
};

/** The leg that a cell speaks of: the one that needs most attention. */
export function worst(legs: Leg[]): Leg | null {
  return legs.reduce<Leg | null>(
    (w, leg) => (w === null || GRAVITY[leg.state] > GRAVITY[w.state] ? leg : w),
    null,
  );
}

export type Tally = Record<LegState, number>;

export function tally(items: EventDeliveries[]): Tally {
  const t: Tally = { pending: 0, done: 0, retrying: 0, parked: 0, dead: 0, skipped: 0 };
  for (const item of items) for (const leg of item.legs) t[leg.state] += 1;
  return t;
}

/** Whether anything may still move by itself. */
export function moving(t: Tally): boolean {
  return t.pending + t.retrying + t.parked > 0;
}

/** In the order in which they happened. */
export function inOrder(items: EventDeliveries[]): EventDeliveries[] {
  return [...items].sort(
    (a, b) =>
      Date.parse(a.occurred_at) - Date.parse(b.occurred_at) ||
      (a.aggregate_type === b.aggregate_type ? a.sequence - b.sequence : a.aggregate_type === "job" ? -1 : 1),
  );
}
