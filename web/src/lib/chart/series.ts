/** What is drawn from the samples of a job. Pure. */
import type { Sample } from "../api/types";
import type { TimelineEvent } from "../jobs/timeline";

type Field = Exclude<keyof Sample, "t">;

export interface Line {
  field: Field;
  label: string;
  /** The number of the colour token. */
  colour: 1 | 2 | 3 | 4;
}

export interface Plot {
  key: string;
  title: string;
  unit: string;
  /** What a value in the sample is multiplied by to be in `unit`. */
  scale: number;
  lines: Line[];
}

const CPU: Line = { field: "cpu_utilization_percent", label: "CPU", colour: 1 };
const GPU: Line = { field: "gpu_utilization_percent", label: "GPU", colour: 4 };
const MEMORY: Line = { field: "system_memory_used_gb", label: "Memory", colour: 1 };
const GPU_MEMORY: Line = { field: "gpu_memory_used_gb", label: "GPU memory", colour: 4 };
const IO: Line[] = [
  { field: "disk_read_throughput_mbps", label: "Disk read", colour: 1 },
  { field: "disk_write_throughput_mbps", label: "Disk write", colour: 2 },
  { field: "network_in_mbps", label: "Network in", colour: 3 },
  { field: "network_out_mbps", label: "Network out", colour: 4 },
];

/** The plots worth drawing: what no sample has, or only as zero where it is optional, is left out. */
export function plots(samples: Sample[]): Plot[] {
  const largest = (field: Field) =>
    samples.reduce((max, s) => Math.max(max, value(s, field) ?? 0), 0);
  const known = (line: Line) => samples.some((s) => value(s, line.field) !== null);
  const used = (line: Line) => largest(line.field) > 0;
  const memory = [MEMORY, ...(used(GPU_MEMORY) ? [GPU_MEMORY] : [])];
  const inMegabytes = Math.max(...memory.map((l) => largest(l.field))) < 1;
  return [
    { key: "cpu", title: "Processor", unit: "%", scale: 1, lines: [CPU, ...(used(GPU) ? [GPU] : [])] },
    {
      key: "memory",
      title: "Memory",
      unit: inMegabytes ? "MB" : "GB",
      scale: inMegabytes ? 1_000 : 1,
      lines: memory,
    },
    {
      key: "io",
      title: "Input and output",
      unit: "MB/s",
      scale: 1,
      lines: IO.filter((l, n) => (n < 2 ? known(l) : used(l))),
    },
  ].filter((p) => p.lines.some(known));
}

export function value(sample: Sample, field: Field): number | null {
  const v = sample[field];
  return typeof v === "number" && Number.isFinite(v) ? v : null;
}

/** Columns as the chart takes them: seconds, then one column a line. */
export function columnsOf(samples: Sample[], plot: Plot): (number | null)[][] {
  return [
    samples.map((s) => Date.parse(s.t) / 1_000),
    ...plot.lines.map((line) =>
      samples.map((s) => {
        const v = value(s, line.field);
        return v === null ? null : v * plot.scale;
      }),
    ),
  ];
}

export interface Mark {
  /** Seconds since the epoch. */
  at: number;
  label: string;
  tone: "run" | "good" | "bad" | "warn" | "wait";
}

/** The events that explain a turn in the curves. */
export function marks(events: TimelineEvent[]): Mark[] {
  return events.flatMap((e): Mark[] => {
    const at = e.at / 1_000;
    if (e.type === "job.completed") return [{ at, label: "completed", tone: "good" }];
    if (e.type === "job.failed") return [{ at, label: "failed", tone: "bad" }];
    if (e.type === "job.cancelled") return [{ at, label: "cancelled", tone: "wait" }];
    if (e.type !== "job.status.changed") return [];
    const { new_status: to, previous_status: from, attempt } = e.payload;
    if (to === "RUNNING" && from !== "RUNNING")
      return [{ at, label: typeof attempt === "number" && attempt > 1 ? `attempt ${attempt}` : "started", tone: "run" }];
    return to === "QUEUED" && from === "FAILED" ? [{ at, label: "queued again", tone: "warn" }] : [];
  });
}

/** Three significant digits are what a glance takes in. */
export function reading(v: number | null): string {
  if (v === null) return "–";
  if (v === 0) return "0";
  if (Math.abs(v) >= 100) return Math.round(v).toLocaleString("en-US");
  return String(Number(v.toPrecision(3)));
}
