// Plays one scenario against a server and prints what came of it: node scenarios.mjs NAME BASE KEY

import { Runflow, RunflowError } from "./client.mjs";

const [, , name, apiBase, apiKey] = process.argv;
const MODEL = "black-forest-labs/flux-2-klein-4b";
const client = new Runflow({ apiKey, apiBase, pollMs: 100, deadlineMs: 20_000 });
const small = { image_size: { width: 128, height: 128 }, num_inference_steps: 2 };

const scenarios = {
  async picture() {
    const run = await client.run(MODEL, { prompt: "a red circle", ...small }, { tool: "poster", source: "test" });
    const url = Runflow.firstUrl(run);
    const file = await fetch(url);
    const bytes = new Uint8Array(await file.arrayBuffer());
    return { run, url, type: file.headers.get("content-type"), size: bytes.length };
  },
  async edit() {
    const first = await client.run(MODEL, { prompt: "a red circle", ...small });
    return client.run(`${MODEL}/edit`, { prompt: "with a hat", image_urls: [Runflow.firstUrl(first)], steps: 2 });
  },
  async failure() {
    return client.run(MODEL, { prompt: "[fail]", ...small });
  },
  async cancelled() {
    const created = await client.create(MODEL, { prompt: "[slow 100]", ...small, num_inference_steps: 50 });
    const waiting = client.wait(created.id);
    await client.request("POST", `/v1/admin/runs/${created.id}/cancellation`, { reason: "no longer needed" });
    return waiting;
  },
  async sync() {
    return client.create(MODEL, { prompt: "a red circle", ...small, sync_mode: true });
  },
  async refused() {
    return client.run(MODEL, { prompt: "a red circle", num_images: 9 });
  },
  async unknown() {
    return client.run("black-forest-labs/no such model", { prompt: "x" });
  },
  async slug() {
    return client.run("flux-2-klein-4b", { prompt: "x" });
  },
  async health() {
    return client.health();
  },
  async upload() {
    return client.upload("a.png", new Uint8Array([1, 2, 3]), "image/png");
  },
};

try {
  console.log(JSON.stringify({ value: await scenarios[name]() }));
} catch (error) {
  if (!(error instanceof RunflowError)) throw error;
  const { message, status, code, run } = error;
  console.log(JSON.stringify({ error: { message, status, code, run } }));
}
