// Drives npm @runware/sdk (the current JavaScript SDK), unmodified, through one scenario; transport in the argument.
//   node sdk.mjs SCENARIO '{"url": …, "key": …, "transport": "rest" or "websocket", …}'
// Prints one line of JSON: {"value": …} or {"error": …}. "sent" on a line of its own says that the work is under way.

import { readFileSync } from "node:fs";
import { createClient } from "@runware/sdk";

const PROMPT = "a lighthouse at dusk";
const BASE = { taskType: "imageInference", model: "runware:400@4", width: 256, height: 256, steps: 4 };
const [name, text] = process.argv.slice(2);
const given = JSON.parse(text);

async function using(work) {
  const client = await createClient({
    apiKey: given.key, transport: given.transport, httpBaseUrl: `${given.url}/v1`, wsBaseUrl: `${given.url.replace("http", "ws")}/v1`,
  });
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.disconnect();
  }
}

const make = (more) => using((client) => client.run({ ...BASE, positivePrompt: PROMPT, deliveryMethod: "sync", ...more }));
const base64 = (file) => readFileSync(file).toString("base64");

const scenarios = {
  connect: () => using(async (client) => { await client.accountManagement({ operation: "getDetails" }); return true; }),
  wrong_key: () => scenarios.connect(),
  one: () => make({ seed: 7, includeCost: true }),
  three: () => make({ numberResults: 3, seed: 7 }),
  reference: () => make({ inputs: { referenceImages: [base64(given.file)] } }),
  polling: () => make({ positivePrompt: given.prompt, numberResults: 3, deliveryMethod: "async" }),
  refused: () => make({ width: 100 }),
  failing_second: () => make({ positivePrompt: "[fail 1] two boats", numberResults: 2 }),
  restart: () => {
    setTimeout(() => console.log("sent"), 300);
    return make({ positivePrompt: given.prompt, taskUUID: given.uuid, deliveryMethod: "async" });
  },
  upload: () => using(async (client) => {
    const [kept] = await client.mediaStorage({ operation: "upload", media: base64(given.file) });
    const images = await client.run({ ...BASE, positivePrompt: PROMPT, deliveryMethod: "sync", inputs: { referenceImages: [kept.mediaUUID] } });
    return { upload: kept, images };
  }),
  webhook: () => make({ webhookURL: given.webhook, deliveryMethod: "async" }),
};

scenarios[name]()
  .then((value) => console.log(JSON.stringify({ value: value ?? null })))
  .catch((error) => console.log(JSON.stringify({ error: { message: String(error?.message ?? error), ...error } })))
  .finally(() => process.exit(0));
