import { expect, it } from "vitest";
import type { Sample } from "../api/types";
import { iso } from "../jobs/fixtures";
import { columnsOf, plots, reading } from "./series";

const sample = (at: number, over: Partial<Record<keyof Sample, number | null>> = {}) =>
  ({ t: iso(at), cpu_utilization_percent: 50, gpu_utilization_percent: 0, system_memory_used_gb: 0.2, ...over }) as unknown as Sample;

it("draws what there is and leaves out what was never used", () => {
  expect(plots([sample(0)]).map((p) => [p.key, p.unit, p.lines.length])).toEqual([
    ["cpu", "%", 1],
    ["memory", "MB", 1],
  ]);
  const rich = sample(0, { gpu_utilization_percent: 3, system_memory_used_gb: 12, disk_read_throughput_mbps: 0, network_in_mbps: 1 });
  expect(plots([rich]).map((p) => [p.key, p.unit, p.lines.length])).toEqual([
    ["cpu", "%", 2],
    ["memory", "GB", 1],
    ["io", "MB/s", 2],
  ]);
});

it("gives columns in seconds and in the plot's unit, with holes as holes", () => {
  const plot = plots([sample(0)])[1];
  expect(plot && columnsOf([sample(0), sample(1_500, { system_memory_used_gb: null })], plot)).toEqual([
    [Date.parse(iso(0)) / 1_000, Date.parse(iso(1_500)) / 1_000],
    [200, null],
  ]);
});

it("reads values with three digits", () => {
  expect([reading(null), reading(0), reading(0.012345), reading(61.57), reading(12_345.6)]).toEqual(["–", "0", "0.0123", "61.6", "12,346"]);
});
