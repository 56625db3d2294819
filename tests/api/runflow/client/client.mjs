// A client that behaves as the official JavaScript client is described to behave: what it accepts as a key and a
// model, how it asks and polls, when it stops, what it makes of errors. Written for these tests from that description.

const STOP = ["succeeded", "failed", "canceled"];
const REQUEST_MS = 30_000;

export class RunflowError extends Error {
  constructor(message, { status = null, code = null, run = null } = {}) {
    super(message);
    Object.assign(this, { status, code, run });
  }
}

export class Runflow {
  constructor({ apiKey, apiBase = "https://api.runflow.io", pollMs = 2_000, deadlineMs = 180_000 }) {
    if (!/^[A-Za-z0-9_]+$/.test(apiKey)) throw new RunflowError("the key holds characters that no key has");
    Object.assign(this, { apiKey, apiBase: apiBase.replace(/\/$/, ""), pollMs, deadlineMs });
  }

  async request(method, path, body) {
    const response = await fetch(this.apiBase + path, {
      method,
      headers: { Authorization: `Bearer ${this.apiKey}`, "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(REQUEST_MS),
    });
    const isJson = (response.headers.get("content-type") ?? "").includes("application/json");
    const answer = isJson ? await response.json() : await response.text();
    if (!response.ok) {
      const told = answer?.message ?? answer?.error?.message ?? `HTTP ${response.status}`;
      throw new RunflowError(told, { status: response.status, code: answer?.code ?? answer?.error?.code });
    }
    return answer;
  }

  static path(model) {
    const segments = model.split("/");
    if (segments.some((segment) => ["", ".", ".."].includes(segment))) throw new RunflowError("not a model path");
    return segments.map(encodeURIComponent).join("/");
  }

  create(model, input, envelope = {}) {
    return this.request("POST", `/v1/models/${Runflow.path(model)}/runs`, { input, ...envelope });
  }

  async wait(id) {
    const deadline = Date.now() + this.deadlineMs;
    while (Date.now() < deadline) {
      const run = await this.poll(id);
      if (run && STOP.includes(run.status_code)) return run;
      await new Promise((resolve) => setTimeout(resolve, this.pollMs));
    }
    throw new RunflowError("the run did not end in time");
  }

  // Network trouble and 5xx are met again by the next poll; anything else is final.
  async poll(id) {
    try {
      return await this.request("GET", `/v1/runs/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error instanceof RunflowError && error.status < 500) throw error;
      return null;
    }
  }

  // The tool runner: always names the call and where it comes from.
  async run(model, input, { tool = "image", source = "sdk" } = {}) {
    const envelope = { client_ref: crypto.randomUUID(), metadata: { tool, source } };
    const created = await this.create(model, input, envelope);
    const run = await this.wait(created.id);
    if (run.status_code !== "succeeded") {
      throw new RunflowError(run.error?.message ?? `the run ${run.status_code}`, { run });
    }
    return run;
  }

  static firstUrl({ output }) {
    const listed = output?.outputs?.[0]?.url ?? output?.image_urls?.[0];
    return listed ?? output?.image?.url ?? output?.url ?? output?.output_url;
  }

  health() {
    return this.request("GET", "/v1/health");
  }

  // It sends files to https addresses only.
  async upload(filename, bytes, type) {
    const session = await this.request("POST", "/v1/asset-uploads", {
      filename,
      mime_type: type,
      size_bytes: bytes.length,
    });
    if (!session.upload_url.startsWith("https:")) throw new RunflowError("the upload address is not https");
    await fetch(session.upload_url, { method: "PUT", headers: { "Content-Type": type }, body: bytes });
    return this.request("POST", `/v1/asset-uploads/${session.asset_id}/confirmations`, { folder_id: null });
  }
}
