/** One field of a request that the server refused; `field` is dotted, as in `params.threshold`. */
export interface FieldError {
  field: string;
  code: string;
  message: string;
}

/**
 * Why a call did not succeed, in the words of the server's problem document.
 * `status` is 0 when no answer came at all.
 */
export class ApiError extends Error {
  readonly status: number;
  readonly type: string;
  readonly title: string;
  readonly detail: string;
  readonly requestId: string | null;
  readonly retrySafe: boolean;
  readonly fields: FieldError[];

  constructor(init: {
    status: number;
    type?: string;
    title: string;
    detail?: string;
    requestId?: string | null;
    retrySafe?: boolean;
    fields?: FieldError[];
  }) {
    super(init.title);
    this.name = "ApiError";
    this.status = init.status;
    this.type = init.type ?? "about:blank";
    this.title = init.title;
    this.detail = init.detail ?? "";
    this.requestId = init.requestId ?? null;
    this.retrySafe = init.retrySafe ?? false;
    this.fields = init.fields ?? [];
  }

  /** No answer came: the gateway is away or the line is cut. */
  get unreachable(): boolean {
    return this.status === 0;
  }
}

function text(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

/** Reads a problem document; a body that is none still gives a usable error. */
export function problemFrom(response: Response, body: unknown): ApiError {
  const p = (typeof body === "object" && body !== null ? body : {}) as Record<string, unknown>;
  const errors = Array.isArray(p["errors"]) ? p["errors"] : [];
  const fields = errors.flatMap((e: unknown): FieldError[] => {
    if (typeof e !== "object" || e === null) return [];
    const { field, code, message } = e as Record<string, unknown>;
    if (typeof field !== "string" || typeof message !== "string") return [];
    return [{ field: dotted(field), code: text(code) ?? "invalid", message }];
  });
  return new ApiError({
    status: response.status,
    type: text(p["type"]) ?? "about:blank",
    title: text(p["title"]) ?? `The gateway answered ${response.status}`,
    detail: text(p["detail"]) ?? (typeof body === "string" ? body.slice(0, 300) : ""),
    requestId: text(p["request_id"]) ?? response.headers.get("x-request-id"),
    retrySafe: p["retry_safe"] === true,
    fields,
  });
}

/** `/params/bands/0` and `params.bands.0` name the same field. */
export function dotted(field: string): string {
  return field.replace(/^[/.]+/, "").replaceAll("/", ".");
}

/** Whatever was thrown, as an ApiError. */
export function asApiError(thrown: unknown): ApiError {
  if (thrown instanceof ApiError) return thrown;
  const timedOut = thrown instanceof DOMException && thrown.name === "TimeoutError";
  return new ApiError({
    status: 0,
    title: timedOut ? "The gateway did not answer in time" : "The gateway cannot be reached",
    detail: timedOut
      ? "No answer within 15 s. The page keeps trying."
      : "The connection failed. Check that the gateway is running; the page keeps trying.",
    retrySafe: true,
  });
}
