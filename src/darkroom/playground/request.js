// From the server's neutral record of a request back to the form's fields. The other way is the server's work.

const FORMATS = { jpeg: "JPG", png: "PNG", webp: "WEBP" };

/** request: as in GET /v1/tasks and in a picture's metadata. Returns a Runware task without the ids. */
export function toTask(request) {
  const task = {
    positivePrompt: request.prompt,
    width: request.width,
    height: request.height,
    steps: request.steps,
    seed: request.seed,
    numberResults: request.count,
    CFGScale: request.cfg_scale > 1 ? request.cfg_scale : request.guidance > 1 ? request.guidance : undefined,
    scheduler: request.sampler === "Default" ? undefined : request.sampler,
    acceleration: request.acceleration,
    outputFormat: FORMATS[request.output?.format],
    outputQuality: request.output?.quality,
  };
  if (request.negative_prompt) task.negativePrompt = request.negative_prompt;
  if (request.references?.length) task.inputs = { referenceImages: request.references };
  if (request.adapters?.length) task.lora = request.adapters.map(({ adapter, weight, stage }) => ({ model: adapter, weight, transformer: stage }));
  if (request.upsample_prompt) task.providerSettings = { bfl: { promptUpsampling: true } };
  return Object.fromEntries(Object.entries(task).filter(([, value]) => value !== undefined && value !== null));
}
