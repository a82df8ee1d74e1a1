import { expect, it } from "vitest";
import { deliveries, iso, leg } from "../jobs/fixtures";
import { columns, inOrder, legsAt, moving, tally, worst } from "./legs";

it("has the three brokers always, then the consumers there are, in their usual order", () => {
  const items = [deliveries({ legs: ["zeta", "audit", "orchestrator"].map((name) => leg({ kind: "consumer", name })) })];
  expect(columns(items).map((c) => c.label)).toEqual(["RabbitMQ", "Kafka", "NATS", "Orchestrator", "Audit", "Zeta"]);
});

it("speaks of the leg that needs most attention", () => {
  const item = deliveries({ legs: [leg(), leg({ state: "dead" }), leg({ state: "pending" }), leg({ name: "nats" })] });
  const kafka = columns([item])[1];
  expect(kafka && worst(legsAt(item, kafka))?.state).toBe("dead");
  expect(worst([])).toBeNull();
});

it("is done moving when nothing is pending, retrying or parked", () => {
  const t = (state: "done" | "dead" | "skipped" | "parked") => moving(tally([deliveries({ legs: [leg({ state })] })]));
  expect([t("done"), t("dead"), t("skipped"), t("parked")]).toEqual([false, false, false, true]);
});

it("lists events as they happened, a job's before those of its commands", () => {
  const items = [
    deliveries({ event_id: "c", occurred_at: iso(9), sequence: 3 }),
    deliveries({ event_id: "b", aggregate_type: "job_command" }),
    deliveries({ event_id: "a" }),
  ];
  expect(inOrder(items).map((i) => i.event_id)).toEqual(["a", "b", "c"]);
});
