import { expect, it } from "vitest";
import { isFiltered, mayMatch, readFilters, toQuery } from "./filters";
import { job, T0 } from "./fixtures";

const read = (text: string) => readFilters(new URLSearchParams(text));

it("reads the URL and drops what is none of its values", () => {
  const f = read("status=running,FAILED,nonsense&tacc_system=mars&agent=AlphaCal&q=%20");
  expect(f).toMatchObject({ status: ["RUNNING", "FAILED"], tacc_system: null, agent: "AlphaCal", q: null });
  expect(isFiltered(f)).toBe(true);
  expect(isFiltered(read("submit=1"))).toBe(false);
});

it("asks with several states in one parameter and a relative time resolved", () => {
  expect(toQuery(read("status=RUNNING,FAILED&from=24h&user=ada"), T0)).toEqual({
    status: "RUNNING,FAILED",
    user: "ada",
    from: new Date(T0 - 86_400_000).toISOString(),
  });
  expect(toQuery(read("from=2026-11-01T00:00:00Z"), T0)).toEqual({ from: "2026-11-01T00:00:00Z" });
});

it("counts as new only what the filters let through", () => {
  const j = job({ name: "Night run" });
  expect(mayMatch(read(""), j)).toBe(true);
  expect(mayMatch(read("q=night&agent=AnomalyDetection&status=QUEUED"), j)).toBe(true);
  expect(mayMatch(read("status=FAILED"), j)).toBe(false);
  expect(mayMatch(read("user=grace"), j)).toBe(false);
});
