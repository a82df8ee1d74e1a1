/** The one way to the REST API: typed paths, the bearer token, a time limit, problems as ApiError. */
import createClient from "openapi-fetch";
import { clock } from "../clock.svelte";
import { asApiError, problemFrom } from "./problem";
import type { paths } from "./schema";

const TIMEOUT_MS = 15_000;

let bearer: string | null = null;
let refused: () => void = () => undefined;

/** Sets the token that goes with every call, and what to do when the server no longer takes it. */
export function setBearer(token: string | null, onRefused: () => void): void {
  bearer = token;
  refused = onRefused;
}

const client = createClient<paths>({
  baseUrl: window.location.origin,
  fetch: (request) =>
    fetch(request, {
      signal: AbortSignal.any([request.signal, AbortSignal.timeout(TIMEOUT_MS)]),
    }),
});

client.use({
  onRequest({ request }) {
    if (bearer !== null) request.headers.set("authorization", `Bearer ${bearer}`);
    return request;
  },
  onResponse({ request, response }) {
    clock.observe(response.headers.get("date"));
    const sent = request.headers.get("authorization");
    // A late 401 for a token that has since been replaced must not end the new session.
    if (response.status === 401 && bearer !== null && sent === `Bearer ${bearer}`) refused();
  },
});

export const api = client;

/** The body of a successful call; everything else is thrown as ApiError. */
export async function body<T>(
  call: Promise<{ data?: T; error?: unknown; response: Response }>,
): Promise<T> {
  const answer = await call.catch((thrown: unknown) => {
    if (thrown instanceof DOMException && thrown.name === "AbortError") throw thrown;
    throw asApiError(thrown);
  });
  if (!answer.response.ok) throw problemFrom(answer.response, answer.error);
  return answer.data as T;
}
