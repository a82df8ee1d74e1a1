/** A form from the JSON Schema of an agent's parameters, and the parameters from the form. Pure. */

export type Kind = "text" | "number" | "integer" | "boolean" | "choice" | "list" | "json";

export interface ParamField {
  /** The path inside `params`; nested objects give more than one element. */
  path: string[];
  label: string;
  kind: Kind;
  hint: string | undefined;
  required: boolean;
  choices: unknown[];
  min: number | undefined;
  max: number | undefined;
  unit: string | undefined;
  /** What the schema proposes, as the form holds it. */
  initial: string | boolean;
  /** The type of the elements of a `list`. */
  elements: "text" | "number";
}

type Schema = Record<string, unknown>;

/**
 * The fields of an object schema by `x-order`, else in its own order (JSON objects promise none);
 * anything a form cannot show becomes JSON text.
 */
export function fieldsOf(schema: unknown, path: string[] = []): ParamField[] {
  if (!isObject(schema)) return [];
  const properties = isObject(schema["properties"]) ? schema["properties"] : {};
  const required = Array.isArray(schema["required"]) ? schema["required"] : [];
  const ordered = Object.entries(properties)
    .map(([name, value]) => ({ name, property: isObject(value) ? value : {} }))
    .sort((a, b) => placeOf(a.property) - placeOf(b.property));
  return ordered.flatMap(({ name, property }) => {
    const here = [...path, name];
    if (typeOf(property) === "object" && isObject(property["properties"]))
      return fieldsOf(property, here);
    return [fieldOf(property, here, required.includes(name))];
  });
}

function placeOf(property: Schema): number {
  return number(property["x-order"]) ?? Number.MAX_SAFE_INTEGER;
}

function fieldOf(schema: Schema, path: string[], required: boolean): ParamField {
  const name = path.at(-1) ?? "";
  const choices = Array.isArray(schema["enum"]) ? schema["enum"] : [];
  const kind = kindOf(schema, choices);
  const items = isObject(schema["items"]) ? schema["items"] : {};
  const elements = ["number", "integer"].includes(typeOf(items)) ? "number" : "text";
  return {
    path,
    label: text(schema["title"]) ?? sentence(name),
    kind,
    hint: hintOf(schema, kind),
    required,
    choices,
    min: number(schema["minimum"]) ?? number(schema["exclusiveMinimum"]),
    max: number(schema["maximum"]) ?? number(schema["exclusiveMaximum"]),
    unit: text(schema["x-unit"]) ?? text(schema["unit"]),
    initial: initialOf(schema["default"], kind),
    elements,
  };
}

function kindOf(schema: Schema, choices: unknown[]): Kind {
  if (choices.length > 0) return "choice";
  switch (typeOf(schema)) {
    case "string":
      return "text";
    case "number":
      return "number";
    case "integer":
      return "integer";
    case "boolean":
      return "boolean";
    case "array": {
      const items = isObject(schema["items"]) ? schema["items"] : {};
      return ["string", "number", "integer"].includes(typeOf(items)) ? "list" : "json";
    }
    default:
      return "json";
  }
}

function hintOf(schema: Schema, kind: Kind): string | undefined {
  const parts: string[] = [];
  const description = text(schema["description"]);
  if (description !== undefined) parts.push(/[.!?]$/.test(description) ? description : `${description}.`);
  const min = number(schema["minimum"]);
  const max = number(schema["maximum"]);
  const above = number(schema["exclusiveMinimum"]);
  const below = number(schema["exclusiveMaximum"]);
  const low = min !== undefined ? `at least ${min}` : above !== undefined ? `above ${above}` : null;
  const high = max !== undefined ? `at most ${max}` : below !== undefined ? `below ${below}` : null;
  const range =
    min !== undefined && max !== undefined
      ? `From ${min} to ${max}`
      : [low, high].filter(Boolean).join(", ");
  if (range !== "") parts.push(`${range[0]?.toUpperCase()}${range.slice(1)}.`);
  if (kind === "list") parts.push("Separate several with commas.");
  if (kind === "json") parts.push("As JSON.");
  return parts.length === 0 ? undefined : parts.join(" ");
}

function initialOf(value: unknown, kind: Kind): string | boolean {
  if (kind === "boolean") return value === true;
  if (value === undefined || value === null) return "";
  if (kind === "list") return Array.isArray(value) ? value.join(", ") : "";
  if (kind === "json" || kind === "choice") return JSON.stringify(value);
  return String(value);
}

/** What stands in the form, by the dotted path of its field. */
export type Values = Record<string, string | boolean>;

export function keyOf(field: ParamField): string {
  return field.path.join(".");
}

/**
 * The `params` of the request. Empty fields are left out. What is no number is sent as the
 * text it is: the server's answer names the field, and says what it takes.
 */
export function paramsFrom(fields: ParamField[], values: Values): Record<string, unknown> {
  const params: Record<string, unknown> = {};
  for (const field of fields) {
    const raw = values[keyOf(field)];
    const value = raw === undefined ? undefined : valueOf(field, raw);
    if (value !== undefined) put(params, field.path, value);
  }
  return params;
}

function valueOf(field: ParamField, raw: string | boolean): unknown {
  if (typeof raw === "boolean") return raw;
  const trimmed = raw.trim();
  if (trimmed === "") return undefined;
  switch (field.kind) {
    case "number":
    case "integer":
      return numberOr(trimmed);
    case "list":
      return trimmed
        .split(",")
        .map((s) => s.trim())
        .filter((s) => s !== "")
        .map((s) => (field.elements === "number" ? numberOr(s) : s));
    case "choice":
    case "json":
      try {
        return JSON.parse(trimmed);
      } catch {
        return trimmed;
      }
    default:
      return raw;
  }
}

export function numberOr(value: string): number | string {
  const n = Number(value.replace(",", "."));
  return value !== "" && Number.isFinite(n) ? n : value;
}

function put(target: Record<string, unknown>, path: string[], value: unknown): void {
  let at = target;
  for (const step of path.slice(0, -1)) {
    const inner = at[step];
    if (isObject(inner)) at = inner;
    else {
      const made: Record<string, unknown> = {};
      at[step] = made;
      at = made;
    }
  }
  const last = path.at(-1);
  if (last !== undefined) at[last] = value;
}

/** `min_snr_db` and `minSnrDb` both read as "Min snr db". */
export function sentence(name: string): string {
  const words = name.replace(/([a-z0-9])([A-Z])/g, "$1 $2").replaceAll(/[_-]+/g, " ").trim().toLowerCase();
  return words === "" ? name : `${words[0]?.toUpperCase()}${words.slice(1)}`;
}

/** A nullable type counts as the type it may hold. */
function typeOf(schema: Schema): string {
  const type = schema["type"];
  if (typeof type === "string") return type;
  if (Array.isArray(type)) {
    const named = type.find((t) => t !== "null");
    if (typeof named === "string") return named;
  }
  return isObject(schema["properties"]) ? "object" : "";
}
function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
function text(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}
function number(value: unknown): number | undefined {
  return typeof value === "number" ? value : undefined;
}
