import { expect, it } from "vitest";
import { Cursor, Seen } from "./cursor";

it("tells the next offset from a repeat and from a hole", () => {
  const c = new Cursor(3);
  expect([c.judge(3), c.judge(2), c.judge(4), c.judge(5)]).toEqual(["repeat", "repeat", "next", "hole"]);
});

it("takes any first offset, and never moves back", () => {
  const c = new Cursor();
  expect(c.judge(17)).toBe("next");
  c.advance(17);
  c.advance(12);
  expect(c.offset).toBe(17);
});

it("remembers ids up to its limit, oldest out first", () => {
  const seen = new Seen(2);
  expect([seen.first("a"), seen.first("a"), seen.first("b"), seen.first("c")]).toEqual([true, false, true, true]);
  expect([seen.first("c"), seen.first("a")]).toEqual([false, true]);
});
