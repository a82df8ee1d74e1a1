import { expect, it } from "vitest";
import { asApiError, dotted, problemFrom } from "./problem";

const answer = (status: number, headers: Record<string, string> = {}) =>
  new Response(null, { status, headers });

it("reads a problem document with its field errors", () => {
  const e = problemFrom(answer(422), {
    type: "/problems/validation",
    title: "The job was refused",
    status: 422,
    detail: "2 fields",
    request_id: "r-1",
    retry_safe: false,
    errors: [
      { field: "/params/bands/0", code: "type", message: "is no number" },
      { field: "agent", code: "unknown", message: "no such agent" },
      { code: "broken" },
    ],
  });
  expect(e).toMatchObject({ status: 422, title: "The job was refused", requestId: "r-1", retrySafe: false });
  expect(e.fields).toEqual([
    { field: "params.bands.0", code: "type", message: "is no number" },
    { field: "agent", code: "unknown", message: "no such agent" },
  ]);
});

it("makes the best of an answer that is no problem document", () => {
  const e = problemFrom(answer(502, { "x-request-id": "r-2" }), "<html>bad gateway</html>");
  expect(e).toMatchObject({ status: 502, requestId: "r-2", detail: "<html>bad gateway</html>" });
  expect(e.title).toContain("502");
});

it("tells a lost connection from an answer", () => {
  expect(asApiError(new TypeError("Failed to fetch")).unreachable).toBe(true);
  expect(asApiError(new DOMException("", "TimeoutError")).title).toContain("in time");
  const known = problemFrom(answer(404), {});
  expect(asApiError(known)).toBe(known);
});

it("takes JSON pointers and dotted names alike", () => {
  expect(dotted("/resource_request/num_nodes")).toBe("resource_request.num_nodes");
  expect(dotted("resource_request.num_nodes")).toBe("resource_request.num_nodes");
});
