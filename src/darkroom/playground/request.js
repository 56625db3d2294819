// From a record of the server back to the request that made it.

import * as api from "./api.js";

const FORMATS = { jpeg: "JPG", png: "PNG", webp: "WEBP" };

/**
 * The Runware task behind a record, without its id, which also serves to send it again. As it was sent, where it came by
 * the task API: the neutral record keeps no caches and no addresses. References by their ids, as long as they are kept.
 */
export async function original(record) {
  const sent = await api.sent(record.client_id);
  if (!sent) return toTask(record.request);
  const { taskUUID, referenceImages, ...task } = sent;
  const given = task.inputs?.referenceImages ?? referenceImages ?? [];
  const images = record.request.references.map((id, i) => (record.references[id] ? id : given[i] ?? id));
  if (images.length) task.inputs = { ...task.inputs, referenceImages: images };
  return task;
}

/** request: as in GET /v1/tasks and in a picture's metadata. Returns a Runware task without the ids. */
export function toTask(request) {
  const embedded = request.guidance > 1; // such a network reads CFGScale itself; two passes come on top
  const task = {
    taskType: "imageInference",
    model: request.card,
    positivePrompt: request.prompt,
    width: request.width,
    height: request.height,
    steps: request.steps,
    seed: request.seed,
    numberResults: request.count,
    CFGScale: embedded ? request.guidance : request.cfg_scale > 1 ? request.cfg_scale : undefined,
    scheduler: request.sampler === "Default" ? undefined : request.sampler,
    acceleration: request.acceleration,
    outputFormat: FORMATS[request.output?.format],
    outputQuality: request.output?.quality,
  };
  if (embedded && request.cfg_scale > 1) task.settings = { trueCFGScale: request.cfg_scale };
  if (request.negative_prompt) task.negativePrompt = request.negative_prompt;
  if (request.references?.length) task.inputs = { referenceImages: request.references };
  if (request.adapters?.length) task.lora = request.adapters.map(({ adapter, weight, stage }) => ({ model: adapter, weight, transformer: stage }));
  if (request.upsample_prompt) task.providerSettings = { bfl: { promptUpsampling: true } };
  return Object.fromEntries(Object.entries(task).filter(([, value]) => value !== undefined && value !== null));
}
