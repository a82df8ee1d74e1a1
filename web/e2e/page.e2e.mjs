// The page in Chromium against a real gateway: submit, watch, lose the line, find nothing missing.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";
import { isDeepStrictEqual } from "node:util";
import { chromium } from "playwright-core";
import { client, ROOT, signIn, startGateway } from "./gateway.mjs";
import { Proxy } from "./proxy.mjs";

const OUT = join(ROOT, "web/e2e/.out");
const SCREENSHOT = join(ROOT, "docs/images/page.png");
const AXE = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
/** A slow machine that builds something else at the same time is still no reason to fail. */
const PATIENCE_MS = 30_000;

/** @type {import("./gateway.mjs").Gateway} */ let gateway;
/** @type {Proxy} */ let proxy;
/** @type {import("playwright-core").Browser} */ let browser;
/** @type {import("playwright-core").BrowserContext} */ let context;
/** @type {import("playwright-core").Page} */ let page;
/** @type {ReturnType<typeof client>} */ let api;
/** @type {ReturnType<typeof client>} */ let worker;
/** @type {string[]} */ const complaints = [];

/** The agent whose jobs the test runs itself, over the worker API. @type {string} */ let external;

before(async () => {
  await mkdir(OUT, { recursive: true });
  gateway = await startGateway();
  proxy = new Proxy(gateway.url);
  await proxy.mend();
  browser = await chromium.launch({
    executablePath: process.env["CHROMIUM"] ?? "/usr/bin/chromium",
    args: process.getuid?.() === 0 ? ["--no-sandbox"] : [],
  });
  context = await browser.newContext({
    viewport: { width: 1360, height: 900 },
    reducedMotion: "reduce",
    colorScheme: "light",
    timezoneId: "UTC",
    permissions: ["clipboard-read", "clipboard-write"],
  });
  context.setDefaultTimeout(PATIENCE_MS);
  page = await context.newPage();
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack ?? error.message}`));
  page.on("console", (message) => {
    // A refused connection is logged by the browser itself, and here it is part of the test.
    if (message.type() === "error" && !/ERR_|WebSocket connection|status of 4\d\d/.test(message.text()))
      complaints.push(`console: ${message.text()}`);
  });
  worker = client(gateway.url, (await signIn(gateway.url, { user: "worker-1", role: "worker" })).token);
});

after(async () => {
  await browser?.close();
  await proxy?.cut();
  await gateway?.stop();
});

afterEach(async (t) => {
  // What the page looked like is the best account of what went wrong.
  const name = t.name.replace(/[^a-z0-9]+/gi, "-").slice(0, 60);
  await page.screenshot({ path: join(OUT, `${name}.png`) }).catch(() => undefined);
  await writeFile(join(OUT, "gateway.log"), gateway.log());
});

/** @param {string} path */
const go = (path) => page.goto(proxy.url + path);

/** @param {string} state */
const line = (state) => page.locator(`[data-line="${state}"]`).waitFor();

/** Marks the document, so that a reload would show. */
const mark = () => page.evaluate(() => Object.assign(window, { marked: true }));
const unreloaded = async () =>
  assert.equal(await page.evaluate(() => "marked" in window), true, "the page was reloaded");

/**
 * Moves the focus with Tab, as someone without a mouse does.
 * @param {string} selector
 */
async function tabTo(selector) {
  for (let n = 0; n < 80; n += 1) {
    if (await page.evaluate((s) => document.activeElement?.matches(s) === true, selector)) return;
    await page.keyboard.press("Tab");
  }
  assert.fail(`Tab never reached ${selector}`);
}

/**
 * Waits until what `read` gives passes `check`; the last value is in the message otherwise.
 * @template T
 * @param {string} what
 * @param {() => Promise<T>} read
 * @param {(value: T) => boolean} check
 * @returns {Promise<T>}
 */
async function until(what, read, check) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const value = await read();
    if (check(value)) return value;
    if (Date.now() > end) assert.fail(`${what} did not come true; last: ${JSON.stringify(value)}`);
    await new Promise((done) => setTimeout(done, 100));
  }
}

/** Event ids of the timeline, with what is folded opened. */
async function timeline() {
  for (const fold of await page.locator('[data-progress] button[aria-expanded="false"]').all()) await fold.click();
  return page.locator("[data-event]").evaluateAll((rows) => rows.map((r) => r.getAttribute("data-event") ?? ""));
}

/**
 * The timeline holds exactly the events that REST has, once each.
 * @param {string} id
 */
async function nothingMissing(id) {
  // Both sides may still grow, by a summary say: they must come to the same.
  const both = await until(
    "timeline and history are the same",
    async () => ({ shown: (await timeline()).sort(), history: (await api.events(id)).map((e) => e.event_id).sort() }),
    ({ shown, history }) => isDeepStrictEqual(shown, history),
  );
  assert.ok(both.history.length > 0);
}

/** @param {string} id */
const finished = (id) =>
  until("the job is final", () => api.get(`/jobs/${id}`), (j) => ["COMPLETED", "FAILED", "CANCELLED"].includes(j.status) && j.retry_at == null);

/** @param {string} name */
const submitExternal = (name) =>
  api.post("/jobs", { agent: external, dataset_id: "e2e/observation.ms", name, max_retries: 0 });

/** @param {string} id */
async function claim(id) {
  const claimed = await until(
    "the worker gets the job",
    () => worker.post("/worker/claim", { agents: [external], max: 10 }),
    (a) => a.items.some((/** @type {any} */ i) => i.id === id),
  );
  return claimed.items.find((/** @type {any} */ i) => i.id === id);
}

/**
 * Reports as a worker would.
 * @param {string} id
 * @param {object} report
 */
const report = (id, report) => worker.post(`/jobs/${id}/status`, { attempt: 1, ...report });

/**
 * What axe finds, in light and in dark.
 * @param {string} where
 */
async function accessible(where) {
  for (const colorScheme of /** @type {const} */ (["light", "dark"])) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    // The new colours are there with the frame after next.
    await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
    await page.evaluate(AXE);
    const violations = await page.evaluate(async () => {
      // @ts-expect-error axe was put there by the line above.
      const result = await window.axe.run(document, {
        runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
      });
      return result.violations.map((/** @type {any} */ v) => ({
        id: v.id,
        nodes: v.nodes.slice(0, 3).map((/** @type {any} */ n) => `${n.html.slice(0, 160)} ${n.failureSummary}`),
      }));
    });
    assert.deepEqual(violations, [], `${where} in ${colorScheme}`);
  }
  await page.emulateMedia({ colorScheme: "light", reducedMotion: "reduce" });
}

let broken = false;
/**
 * One step of the story. Steps build on each other: after one that failed the rest says nothing new.
 * @param {string} name
 * @param {(t: import("node:test").TestContext) => Promise<unknown>} work
 */
function step(name, work) {
  it(name, async (t) => {
    if (broken) return t.skip("an earlier step failed");
    try {
      await work(t);
    } catch (problem) {
      broken = true;
      throw problem;
    }
  });
}

describe("the page", () => {
  /** The job submitted by keyboard. */ let id = "";

  step("signs in with one click and says that this is development mode", async () => {
    await go("/");
    await page.getByRole("button", { name: "Sign in for development" }).waitFor();
    await accessible("sign-in");
    await page.getByRole("button", { name: "Sign in for development" }).click();
    await page.getByRole("heading", { name: "Jobs", exact: true }).waitFor();
    await page.locator('[data-banner="development"]').waitFor();
    await line("live");
    const token = await page.evaluate(() => sessionStorage.getItem("event-gateway.token"));
    assert.ok(token);
    api = client(gateway.url, token);
    const agents = (await api.get("/agents")).items;
    external = agents.find((/** @type {any} */ a) => a.runner === "external" && a.any_dataset)?.name;
    assert.ok(external, "no external agent is configured");
  });

  step("says how to get the first job where there is none", async (t) => {
    if ((await api.get("/jobs?limit=1")).items.length > 0) return t.skip("this gateway has jobs already");
    await page.getByText("No jobs yet").waitFor();
    await accessible("the empty list");
  });

  step("puts field errors beside their fields and submits nothing", async () => {
    const before = (await api.get("/jobs/summary")).total;
    await go("/jobs?submit=1&submit_agent=AnomalyDetection");
    await page.getByLabel("Threshold").fill("-1");
    await page.getByText("Resources, system and priority").click();
    await page.getByLabel("Nodes").fill("0");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    for (const field of ["params.threshold", "resource_request.num_nodes"]) {
      const box = page.locator(`[data-field="${field}"]`);
      await box.locator(".error").waitFor();
      const control = box.locator("input");
      assert.equal(await control.getAttribute("aria-invalid"), "true");
      const described = (await control.getAttribute("aria-describedby")) ?? "";
      const told = await box.locator(".error").getAttribute("id");
      assert.ok(told && described.split(" ").includes(told), `${field} is described by its error`);
    }
    await accessible("a refused form");
    // What is corrected loses its mark at once.
    await page.getByLabel("Threshold").fill("5");
    await page.locator('[data-field="params.threshold"] .error').waitFor({ state: "detached" });
    assert.equal((await api.get("/jobs/summary")).total, before);
    await page.keyboard.press("Escape");
    await page.locator("dialog").waitFor({ state: "detached" });
    assert.ok(!new URL(page.url()).searchParams.has("submit"));
  });

  step("submits by keyboard alone", async () => {
    await go("/jobs");
    await tabTo("[data-submit]");
    await page.keyboard.press("Enter");
    await page.locator('input[name="agent"]:focus').waitFor();
    for (let n = 0; n < 12; n += 1) {
      if (await page.locator('input[name="agent"][value="AnomalyDetection"]').isChecked()) break;
      await page.keyboard.press("ArrowDown");
    }
    assert.equal(await page.locator('input[name="agent"][value="AnomalyDetection"]').isChecked(), true);
    await tabTo('[name="name"]');
    await page.keyboard.type("Quiet receiver, 14 nights");
    await page.locator("[data-estimate]").getByText("$0.00").waitFor();
    await tabTo('button[type="submit"][form="submit-form"]');
    await page.keyboard.press("Enter");
    await page.waitForURL(/\/jobs\/[0-9a-f-]{36}$/);
    id = new URL(page.url()).pathname.split("/")[2] ?? "";
    await mark();
  });

  step("watches the job complete without reload, with everything in its timeline", async () => {
    await page.locator('h1:has-text("Quiet receiver, 14 nights")').waitFor();
    await page.locator('[data-status="COMPLETED"]').waitFor();
    await page.locator("[data-next]").getByText(/^Finished/).waitFor();
    await page.locator('[data-type="job.completed"]').waitFor();
    await nothingMissing(id);
    await unreloaded();
    const result = (await api.get(`/jobs/${id}`)).result;
    await page.getByRole("tab", { name: "Result" }).click();
    if (result !== null) await page.getByRole("region", { name: "The result as JSON" }).waitFor();
  });

  step("shows every leg green", async () => {
    await page.getByRole("tab", { name: "Timeline" }).click();
    await page.getByRole("tab", { name: "Deliveries" }).click();
    await page.locator('[data-ledger="good"]').waitFor();
    const ledger = await until(
      "all legs are done",
      () => api.all(`/jobs/${id}/deliveries`),
      (items) => items.every((i) => i.legs.every((/** @type {any} */ l) => ["done", "skipped"].includes(l.state))),
    );
    await until(
      "each event has its row",
      () => page.locator("tbody tr[data-event]").evaluateAll((rows) => rows.map((r) => r.getAttribute("data-event") ?? "").sort()),
      (ids) => JSON.stringify(ids) === JSON.stringify(ledger.map((i) => i.event_id).sort()),
    );
    const states = await page.locator("tbody [data-leg]").evaluateAll((cells) => cells.map((c) => c.getAttribute("data-leg")));
    assert.ok(states.includes("done"));
    assert.deepEqual(states.filter((s) => !["done", "skipped", "none"].includes(s ?? "")), []);
    assert.ok(ledger.some((i) => i.legs.some((/** @type {any} */ l) => l.kind === "consumer")), "no consumer has a leg");
    // A cell tells more on focus and everything on Enter; Esc goes back.
    // One to Kafka: it has a position wherever it is; the real RabbitMQ names none.
    const cell = page.getByRole("link", { name: / to Kafka: done$/ }).first();
    await cell.focus();
    await page.getByRole("tooltip").getByText("Attempts").waitFor();
    await page.keyboard.press("Enter");
    await page.getByRole("dialog").getByText("Position").waitFor();
    assert.ok(new URL(page.url()).searchParams.get("leg"));
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await unreloaded();
    const wanted = process.env["E2E_SCREENSHOT"] === "1" || !existsSync(SCREENSHOT);
    await page.mouse.move(0, 0);
    await page.evaluate(() => document.activeElement instanceof HTMLElement && document.activeElement.blur());
    await mkdir(join(ROOT, "docs/images"), { recursive: true });
    await page.screenshot({ path: wanted ? SCREENSHOT : join(OUT, "page.png") });
  });

  step("draws the samples of the job", async () => {
    const series = await api.get(`/jobs/${id}/metrics`);
    await page.getByRole("tab", { name: "Metrics" }).click();
    if (series.items.length === 0) await page.getByText("No samples yet").waitFor();
    else {
      await page.locator(".u-over").first().waitFor();
      await page.getByText(new RegExp(`^${series.items.length} sample`)).waitFor();
    }
  });

  step("loses the line and catches up with exactly what it missed, over the line alone", async () => {
    const job = await submitExternal("Watched through an outage");
    await go(`/jobs/${job.id}`);
    await line("live");
    await mark();
    await claim(job.id);
    await report(job.id, { status: "RUNNING", progress: 0 });
    await page.locator('[data-status="RUNNING"]').waitFor();

    await proxy.cut();
    await line("offline");
    for (const progress of [0.2, 0.4, 0.6, 0.8]) await report(job.id, { status: "RUNNING", progress });
    await report(job.id, { status: "COMPLETED" });
    await finished(job.id);
    assert.equal(await page.locator('[data-type="job.completed"]').count(), 0, "the page cannot know yet");
    await page.getByText(/^Offline since/).waitFor();

    // With the history out of reach, only the resume can bring what was missed.
    await page.route("**/api/v1/jobs/*/events*", (route) => route.abort());
    await proxy.mend();
    await line("live");
    await page.locator('[data-status="COMPLETED"]').waitFor();
    await page.locator('[data-type="job.completed"]').waitFor();
    assert.equal(await page.locator("[data-gap]").count(), 0, "so few updates need no snapshot");
    const own = (await api.events(job.id)).filter((e) => e.aggregate_type === "job").map((e) => e.event_id);
    const shown = await timeline();
    assert.deepEqual(own.filter((e) => !shown.includes(e)), [], "events are missing");
    assert.equal(new Set(shown).size, shown.length, "an event is shown twice");
    await page.unroute("**/api/v1/jobs/*/events*");
    await unreloaded();
  });

  step("says where too many updates were skipped, and fills the gap from the history", async () => {
    const job = await submitExternal("Watched through a long outage");
    await go(`/jobs/${job.id}`);
    await line("live");
    await claim(job.id);
    await report(job.id, { status: "RUNNING", progress: 0 });
    await page.locator('[data-status="RUNNING"]').waitFor();
    await proxy.cut();
    await line("offline");
    // More than the 500 that a resume brings.
    await page.route("**/api/v1/jobs/*/events*", (route) => route.abort());
    const steps = 520;
    for (let n = 1; n <= steps; n += 1) await report(job.id, { status: "RUNNING", progress: n / (steps + 1) });
    await proxy.mend();
    await line("live");
    await page.locator("li[data-gap]").getByText(/^5\d\d updates were skipped, snapshot taken at/).waitFor();
    await page.getByText("100 %", { exact: true }).waitFor();
    await report(job.id, { status: "COMPLETED" });
    await page.locator('[data-status="COMPLETED"]').waitFor();
    await accessible("a gap");
    await page.unroute("**/api/v1/jobs/*/events*");
    await page.getByRole("button", { name: "Read them from the history" }).click();
    await page.locator("li[data-gap]").waitFor({ state: "detached" });
    await nothingMissing(job.id);
  });

  step("works without the socket: it polls, and says so", async () => {
    const job = await submitExternal("Watched by polling");
    await page.route("**/socket.io/**", (route) => route.abort());
    await page.routeWebSocket("**/socket.io/**", (socket) => socket.close());
    await go(`/jobs/${job.id}`);
    await line("offline");
    await page.getByText("Polling", { exact: true }).waitFor();
    await mark();
    await claim(job.id);
    await report(job.id, { status: "RUNNING", progress: 0.5 });
    await report(job.id, { status: "COMPLETED" });
    await page.locator('[data-status="COMPLETED"]').waitFor();
    await nothingMissing(job.id);
    await unreloaded();
    // A page of its own, since a WebSocket route cannot be taken back.
    const token = await page.evaluate(() => sessionStorage.getItem("event-gateway.token") ?? "");
    const old = page;
    page = await context.newPage();
    page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack ?? error.message}`));
    await page.addInitScript((t) => sessionStorage.getItem("event-gateway.token") ?? sessionStorage.setItem("event-gateway.token", t), token);
    await old.close();
  });

  step("counts new jobs instead of pushing the rows that are read, and updates rows in place", async () => {
    await go("/jobs");
    await line("live");
    await page.locator("tr.job").first().waitFor();
    const rows = () => page.locator("tr.job").evaluateAll((all) => all.map((r) => r.getAttribute("data-job")));
    const before = await rows();
    await mark();
    const job = await submitExternal("Comes while the list is read");
    await page.locator("[data-new]").getByText("1 new").waitFor();
    assert.deepEqual(await rows(), before);
    await page.locator("[data-new]").click();
    const row = page.locator(`tr.job[data-job="${job.id}"]`);
    await row.locator('[data-status="QUEUED"]').waitFor();
    await claim(job.id);
    await report(job.id, { status: "RUNNING", progress: 0.25 });
    await row.locator('[data-status="RUNNING"]').waitFor();
    await row.getByText("25 %").waitFor();
    await report(job.id, {
      status: "FAILED",
      error: { code: "no_signal", message: "The scan has no signal", retriable: false },
    });
    await row.locator('[data-status="FAILED"]').waitFor();
    await row.getByText("no_signal").waitFor();
    await unreloaded();
    // The URL is the state: filtered, the list survives a reload.
    await page.locator('[data-filter="FAILED"]').click();
    await page.waitForURL(/status=FAILED/);
    await page.reload();
    await row.waitFor();
    assert.equal(await page.locator('tr.job [data-status="COMPLETED"]').count(), 0);
    // And it can be given a name.
    await page.getByRole("button", { name: "Views" }).click();
    await page.getByLabel("Save these filters as").fill("Failed ones");
    await page.keyboard.press("Enter");
    await go("/jobs");
    await page.getByRole("button", { name: "Views" }).click();
    await accessible("saved views");
    await page.getByRole("link", { name: "Failed ones" }).click();
    await page.waitForURL(/status=FAILED/);
  });

  step("says what a cancel will do, does it, and shows it", async () => {
    const job = await submitExternal("To be cancelled");
    await go(`/jobs/${job.id}`);
    await page.getByRole("button", { name: "Cancel", exact: true }).click();
    await page.getByRole("dialog").getByText("cannot be resumed").waitFor();
    await page.getByRole("button", { name: "Cancel the job" }).click();
    await page.locator('[data-status="CANCELLED"]').waitFor();
    await page.locator('[data-type="job.cancelled"]').waitFor();
    await nothingMissing(job.id);
  });

  step("is worked with the keyboard", async () => {
    await go("/jobs");
    await page.locator("tr.job").first().waitFor();
    await page.keyboard.press("?");
    await page.getByRole("dialog", { name: "Keyboard" }).waitFor();
    await page.keyboard.press("Escape");
    await page.getByRole("dialog").waitFor({ state: "detached" });
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("k");
    const first = await page.locator("tr.job").first().getAttribute("data-job");
    await page.keyboard.press("Enter");
    await page.waitForURL(`**/jobs/${first}`);
    await page.keyboard.press("/");
    await page.keyboard.type(id);
    await page.keyboard.press("Enter");
    await page.waitForURL(`**/jobs/${id}`);
    // An event's id leads to where it went.
    const event = (await api.events(id))[0].event_id;
    await page.keyboard.press("/");
    await page.keyboard.type(event);
    await page.keyboard.press("Enter");
    await page.waitForURL(`**/deliveries?id=${event}`);
    await page.locator(`tr[data-event="${event}"]`).waitFor();
  });

  step("shows problems with title, detail and request id", async () => {
    await go("/jobs/00000000-0000-7000-8000-000000000000");
    const alert = page.getByRole("alert");
    await alert.getByText(/Request/).waitFor();
    assert.match((await alert.locator(".request .mono").textContent()) ?? "", /\S{8,}/);
    await accessible("a problem");
  });

  step("passes axe on every page and fits a phone", async () => {
    const pages = [
      ["/jobs", "tr.job"],
      ["/jobs?q=nothing-is-called-this", "text=No job matches"],
      ["/jobs?submit=1&submit_agent=AnomalyDetection", "#submit-form"],
      [`/jobs/${id}`, '[data-type="job.completed"]'],
      [`/jobs/${id}?tab=metrics`, "#panel section"],
      [`/jobs/${id}?tab=deliveries`, '[data-ledger="good"]'],
      [`/jobs/${id}?tab=result`, "#panel section"],
      [`/jobs/${id}?tab=raw`, "#panel pre"],
      ["/deliveries", "#ledger-id"],
      [`/deliveries?id=${id}`, '[data-ledger="good"]'],
      ["/settings", "text=Appearance"],
      ["/nowhere", "text=nothing at this address"],
    ];
    for (const [path = "", ready = ""] of pages) {
      await page.setViewportSize({ width: 1360, height: 900 });
      await go(path);
      await page.locator(ready).first().waitFor();
      await accessible(path);
      for (const width of [360, 430]) {
        await page.setViewportSize({ width, height: 800 });
        const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
        assert.ok((content ?? 0) <= (screen ?? 0), `${path} is ${content} wide on a screen of ${width}`);
      }
      await accessible(`${path} on a phone`);
    }
    await page.setViewportSize({ width: 1360, height: 900 });
  });

  step("does not shift what is being read while it loads", async () => {
    const other = await context.newPage();
    const token = await page.evaluate(() => sessionStorage.getItem("event-gateway.token") ?? "");
    await other.addInitScript((t) => {
      sessionStorage.setItem("event-gateway.token", t);
      Object.assign(window, { shift: 0 });
      new PerformanceObserver((list) => {
        for (const entry of list.getEntries()) Object.assign(window, { shift: /** @type {any} */ (window).shift + /** @type {any} */ (entry).value });
      }).observe({ type: "layout-shift", buffered: true });
    }, token);
    for (const [path = "", ready = ""] of [
      ["/jobs", "tr.job"],
      [`/jobs/${id}`, '[data-type="job.completed"]'],
      [`/jobs/${id}?tab=deliveries`, '[data-ledger="good"]'],
    ]) {
      await other.goto(proxy.url + path);
      await other.locator(ready).first().waitFor();
      await other.locator('[data-line="live"]').waitFor();
      const shift = await other.evaluate(() => /** @type {any} */ (window).shift);
      // Below 0.1 counts as good; a page that reserves its room is far below.
      assert.ok(shift < 0.05, `${path} shifts by ${shift}`);
    }
    await other.close();
  });

  step("complained about nothing on the console", async () => {
    assert.deepEqual(complaints, []);
  });
});
