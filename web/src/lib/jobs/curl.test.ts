import { execFileSync } from "node:child_process";
import { expect, it } from "vitest";
import { curlFor } from "./curl";

it("survives the shell: quotes and newlines reach curl as they are", () => {
  const request = { agent: "AlphaCal", name: "it's \"one\"\n$HOME `id`" };
  const script = curlFor("http://127.0.0.1:1", request)
    .replace("curl -sS", "printf '%s\\n'")
    .replace("$(uuidgen)", "key");
  const printed = execFileSync("sh", ["-c", script], { env: { TOKEN: "t" } }).toString();
  expect(JSON.parse(printed.slice(printed.indexOf("{")))).toEqual(request);
  expect(printed).toContain("authorization: Bearer t");
});
