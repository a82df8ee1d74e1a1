import { expect, it } from "vitest";
import { parse } from "./routes";

it.each([
  ["/", { name: "jobs" }],
  ["/jobs", { name: "jobs" }],
  ["/jobs/", { name: "jobs" }],
  ["/jobs/abc", { name: "job", id: "abc" }],
  ["/jobs/abc/def", { name: "unknown" }],
  ["/deliveries", { name: "deliveries" }],
  ["/settings", { name: "settings" }],
  ["/elsewhere", { name: "unknown" }],
  ["/jobs/%E0%A4%A", { name: "job", id: "%E0%A4%A" }],
])("%s", (path, route) => expect(parse(path)).toEqual(route));
