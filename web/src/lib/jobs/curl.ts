/** The command that does the same as the form. Pure. */
export function curlFor(origin: string, request: unknown): string {
  const json = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -sS -X POST ${origin}/api/v1/jobs \\`,
    `  -H "authorization: Bearer $TOKEN" \\`,
    `  -H "content-type: application/json" \\`,
    `  -H "idempotency-key: $(uuidgen)" \\`,
    `  -d '${json}'`,
  ].join("\n");
}
