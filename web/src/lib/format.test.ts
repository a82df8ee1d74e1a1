import { describe, expect, it } from "vitest";
import { absolute, bytes, duration, isId, percent, plural, relative, shortId, usd } from "./format";

describe("duration", () => {
  it.each([
    [0, "0 ms"],
    [999, "999 ms"],
    [1_000, "1.0 s"],
    [9_949, "9.9 s"],
    [9_960, "10 s"],
    [59_499, "59 s"],
    [60_000, "1 min"],
    [200_000, "3 min 20 s"],
    [3_599_400, "59 min 59 s"],
    [3_600_000, "1 h"],
    [7_500_000, "2 h 5 min"],
    [86_400_000 * 4 + 3_600_000 * 3, "4 d 3 h"],
    [Number.NaN, "–"],
  ])("%d ms reads %s", (ms, text) => expect(duration(ms)).toBe(text));
});

describe("relative", () => {
  const now = Date.UTC(2026, 10, 21, 12);
  it.each([
    [0, "just now"],
    [-1_500, "1 s ago"],
    [-61_000, "1 min ago"],
    [-7_200_000, "2 h ago"],
    [-86_400_000 * 3, "3 d ago"],
    [3_001, "in 4 s"],
    [400, "in 1 s"],
  ])("%d ms away reads %s", (diff, text) => expect(relative(now + diff, now)).toBe(text));
});

it("names the zone of an absolute time and keeps its milliseconds", () => {
  expect(absolute(Date.UTC(2026, 10, 21, 9, 44, 50, 7), "utc")).toBe("2026-11-21 09:44:50.007 UTC");
  expect(absolute(Number.NaN, "utc")).toBe("–");
});

it("shortens ids in the middle and leaves short ones alone", () => {
  expect(shortId("01a93f2c-7b1e-7c3a-9d2f-5e8b61c07e21")).toBe("01a93f2c…7e21");
  expect(shortId("dev")).toBe("dev");
});

it("knows an id when it sees one", () => {
  expect(isId(" 01A93f2c-7b1e-7c3a-9d2f-5e8b61c07e21 ")).toBe(true);
  expect(isId("01a93f2c")).toBe(false);
});

it("writes sizes, sums and shares", () => {
  expect([bytes(999), bytes(1_000), bytes(184_320), bytes(999_999)]).toEqual(["999 B", "1.0 kB", "184 kB", "1.0 MB"]);
  expect([usd(0), usd(22.4), usd(0.0012), usd(1_234.5)]).toEqual(["$0.00", "$22.40", "$0.0012", "$1,234.50"]);
  expect([percent(0.349), percent(1.7), percent(-1)]).toEqual(["35 %", "100 %", "0 %"]);
  expect([plural(1, "leg"), plural(1_200, "retry", "retries")]).toEqual(["1 leg", "1,200 retries"]);
});
