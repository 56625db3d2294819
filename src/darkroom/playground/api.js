// The server's public API as the playground uses it. Documented in docs/api/.

const KEY = "darkroom-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A refusal. fields: {"dotted.path": message}, as far as the server named them. */
export class ApiError extends Error {
  constructor(message, { status = 0, fields = {}, body = null } = {}) {
    super(message);
    Object.assign(this, { status, fields, body });
  }
}

function headers(more = {}) {
  return key.get() ? { Authorization: `Bearer ${key.get()}`, ...more } : more;
}

async function json(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch {
    throw new ApiError("The server does not answer. Is it still running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && !body?.errors?.length) return body;
  throw refusal(response.status, body);
}

function refusal(status, body) {
  const errors = Array.isArray(body?.errors) ? body.errors : [];
  const fields = {};
  for (const error of errors) {
    for (const name of [error.parameter ?? error.field ?? []].flat()) fields[name] ??= error.message ?? error.msg;
  }
  const message = errors[0]?.message ?? body?.message ?? (status === 401 ? "This server wants an API key." : `The server answered ${status}.`);
  return new ApiError(message, { status, fields, body });
}

export const cards = () => json("/v1/cards");
export const schema = (id) => json(`/v1/cards/${encodeURIComponent(id)}/schema`);
export const task = (id) => json(`/v1/tasks/${id}`);
export const cancel = (id) => json(`/v1/tasks/${id}/cancel`, { method: "POST" });
/** The Runware task that asks for a request, as records and pictures' files carry it. */
export const asking = (model, request) => json(`/v1/cards/${encodeURIComponent(model)}/task`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) });
export const adapters = () => json("/v1/adapters");

const post = (task, more = {}) => json("/v1", { method: "POST", headers: { "Content-Type": "application/json", ...more }, body: JSON.stringify([task]) });

export function tasks({ search = "", model = "", cursor = "" } = {}) {
  return json(`/v1/tasks?${new URLSearchParams({ search, model, cursor, limit: 24 })}`);
}

/** Send one Runware task; the whole answer. Previews are asked for beside the body, so that the body stays portable. */
export const send = (task) => post(task, { "Darkroom-Preview-Every": "2" });

/** A task as its client sent it; null when it did not come by the task API. */
export async function sent(taskUUID) {
  try {
    return (await post({ taskType: "getTaskDetails", taskUUID })).data[0].request[0];
  } catch (error) {
    if (error.status === 404 || error.status === 400) return null;
    throw error;
  }
}

/**
 * Follow a task: onEvent(name, data) for each server-sent event, until the task has ended; its record then, nothing when
 * signal ended it. Reconnects by itself and resumes after the last event seen. Uses fetch, because EventSource cannot
 * send a key. Raises ApiError when trying again is no use.
 */
export async function follow(id, onEvent, signal) {
  let last = "";
  for (let wait = 500; !signal.aborted; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await fetch(`/v1/tasks/${id}/events`, { headers: headers(last ? { "Last-Event-ID": last } : {}), signal });
      if (response.status === 404) throw new ApiError("The server no longer knows this task.", { status: 404 });
      if (response.status === 401 || response.status === 403) throw refusal(response.status, await response.json().catch(() => null));
      if (!response.ok) onEvent("offline", {});
      else {
        for await (const event of events(response.body)) {
          wait = 500;
          if (event.id) last = event.id;
          onEvent(event.name, event.data);
          if (event.name === "end") return event.data;
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError) throw error;
      onEvent("offline", {});
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { name: "message", id: "", data: "" };
      for (const line of block.split("\n")) {
        const [, field, text] = line.match(/^(\w+): ?(.*)$/) ?? [];
        if (field === "event") event.name = text;
        if (field === "id") event.id = text;
        if (field === "data") event.data += text;
      }
      if (event.data) yield { ...event, data: JSON.parse(event.data) };
    }
  }
}
