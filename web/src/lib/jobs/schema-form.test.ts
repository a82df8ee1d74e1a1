import { expect, it } from "vitest";
import { fieldsOf, keyOf, numberOr, paramsFrom, sentence } from "./schema-form";

const schema = {
  type: "object",
  required: ["window"],
  properties: {
    window: { type: "integer", minimum: 3, maximum: 99, default: 11, description: "Samples", "x-unit": "samples" },
    threshold: { type: ["number", "null"], exclusiveMinimum: 0 },
    mode: { enum: ["fast", "slow"], default: "fast" },
    edges: { type: "boolean", default: true },
    bands: { type: "array", items: { type: "number" } },
    fit: { type: "object", properties: { degree: { type: "integer" } } },
    anything: { type: "object" },
  },
};
const fields = fieldsOf(schema);

it("makes a field of every property, in the schema's order", () => {
  expect(fields.map((f) => [keyOf(f), f.kind])).toEqual([
    ["window", "integer"],
    ["threshold", "number"],
    ["mode", "choice"],
    ["edges", "boolean"],
    ["bands", "list"],
    ["fit.degree", "integer"],
    ["anything", "json"],
  ]);
  expect(fields[0]).toMatchObject({ required: true, initial: "11", unit: "samples", hint: "Samples. From 3 to 99." });
  expect(fields[1]).toMatchObject({ required: false, initial: "", hint: "Above 0." });
  expect(fields[3]).toMatchObject({ initial: true });
});

it("reads the form back with the types the schema asks for", () => {
  const values = {
    window: "11",
    threshold: "2,5",
    mode: '"slow"',
    edges: false,
    bands: "1.2, 3,",
    "fit.degree": "4",
    anything: '{"a":1}',
  };
  expect(paramsFrom(fields, values)).toEqual({
    window: 11,
    threshold: 2.5,
    mode: "slow",
    edges: false,
    bands: [1.2, 3],
    fit: { degree: 4 },
    anything: { a: 1 },
  });
});

it("leaves empty fields out and sends what is no number as it was typed", () => {
  expect(paramsFrom(fields, { window: "many", threshold: " ", anything: "{" })).toEqual({ window: "many", anything: "{" });
});

it("puts fields in the place the schema gives them", () => {
  const properties = { a: { "x-order": 2 }, b: { "x-order": 0 }, c: {}, d: { "x-order": 1 } };
  expect(fieldsOf({ properties }).map(keyOf)).toEqual(["b", "d", "a", "c"]);
});

it("survives a schema that is none", () => {
  expect([fieldsOf(null), fieldsOf({}), fieldsOf({ properties: { a: true } }).length]).toEqual([[], [], 1]);
});

it("helps with words and numbers", () => {
  expect([sentence("min_snr_db"), sentence("maxItems")]).toEqual(["Min snr db", "Max items"]);
  expect([numberOr("1e3"), numberOr("ten"), numberOr("")]).toEqual([1000, "ten", ""]);
});
