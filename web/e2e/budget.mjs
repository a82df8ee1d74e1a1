// Fails the build when the first load grows past its budget: index.html, its scripts and styles.
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";

const BUDGET_BYTES = 150_000;

const dist = new URL("../dist/", import.meta.url);
const html = readFileSync(new URL("index.html", dist));
const files = [...html.toString().matchAll(/(?:src|href)="\/([^"]+\.(?:js|css|svg))"/g)].map((m) => m[1] ?? "");
let total = gzipSync(html).length;
for (const file of files) total += gzipSync(readFileSync(new URL(file, dist))).length;
console.log(`first load: ${(total / 1_000).toFixed(1)} kB gzipped of ${BUDGET_BYTES / 1_000} (${files.join(", ")})`);
if (total > BUDGET_BYTES) {
  console.error("The first load is over its budget: load what is not needed at once on demand.");
  process.exit(1);
}
