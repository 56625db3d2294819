// Drives npm @runware/sdk-js (the older JavaScript SDK), unmodified, through one scenario.
//   node sdk_js.mjs SCENARIO '{"url": …, "key": …, …}'
// Prints one line of JSON: {"value": …} or {"error": …}. "sent" on a line of its own says that the work is under way.

import { readFileSync } from "node:fs";
import { Runware } from "@runware/sdk-js";

const PROMPT = "a lighthouse at dusk";
const BASE = { model: "runware:400@4", width: 256, height: 256, steps: 4 };
const [name, text] = process.argv.slice(2);
const given = JSON.parse(text);

async function connected(options = {}) {
  return Runware.initialize({
    apiKey: given.key, url: `${given.url.replace("http", "ws")}/v1`, timeoutDuration: 60000, globalMaxRetries: 1, ...options,
  });
}

async function make(more) {
  const client = await connected();
  const images = await client.imageInference({ positivePrompt: PROMPT, ...BASE, ...more });
  await client.disconnect();
  return images;
}

const inline = (file) => `data:image/png;base64,${readFileSync(file).toString("base64")}`;

const scenarios = {
  async connect() {
    const client = await connected();
    await client.ensureConnection();
    await client.disconnect();
    return true;
  },
  wrong_key: () => scenarios.connect(),
  one: () => make({ seed: 7, includeCost: true }),
  three: () => make({ numberResults: 3, seed: 7 }),
  reference: () => make({ referenceImages: [inline(given.file)] }),
  async polling() {
    const client = await connected();
    const [accepted] = await client.imageInference({ positivePrompt: given.prompt, ...BASE, numberResults: 3, deliveryMethod: "async" });
    let images = [];
    while (images.filter((image) => image.status === "success").length < 3) {
      await new Promise((resolve) => setTimeout(resolve, 300));
      images = await client.getResponse({ taskUUID: accepted.taskUUID, numberResults: 3 });
    }
    await client.disconnect();
    return images;
  },
  refused: () => make({ width: 100 }),
  failing_second: () => make({ positivePrompt: "[fail 1] two boats", numberResults: 2 }),
  async restart() {
    // This SDK forgets what was pending when its socket closes, and sends the task again after its own timeout.
    const client = await connected({ timeoutDuration: 12000, globalMaxRetries: 3 });
    setTimeout(() => console.log("sent"), 300);
    const images = await client.imageInference({ positivePrompt: given.prompt, ...BASE });
    await client.disconnect();
    return images;
  },
  async upload() {
    const client = await connected();
    const kept = await client.mediaStorage({ operation: "upload", media: inline(given.file) });
    const images = await client.imageInference({ positivePrompt: PROMPT, ...BASE, referenceImages: [kept.mediaUUID] });
    await client.disconnect();
    return { upload: kept, images };
  },
  async webhook() {
    return make({ webhookURL: given.webhook, deliveryMethod: "async" });
  },
};

const plain = (error) => (error instanceof Error ? { message: error.message, ...error } : error?.error ?? error);

scenarios[name]()
  .then((value) => console.log(JSON.stringify({ value: value ?? null })))
  .catch((error) => console.log(JSON.stringify({ error: plain(error) ?? {} })))
  .finally(() => process.exit(0));
