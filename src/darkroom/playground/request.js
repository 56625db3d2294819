// From a record of the server, or from what a picture's file carries, back to the request that made it.

import * as api from "./api.js";

/**
 * The Runware task behind a record, without its id, which also serves to send it again. As it was sent, where it came by
 * the task API. References by their ids, as long as they are kept. What delivers elsewhere is left out: whoever looks at a
 * picture again does not mean to call the program that first asked for it.
 */
export async function original(record) {
  const sent = await api.sent(record.client_id);
  if (!sent) return api.asking(record.model, record.request);
  const { taskUUID, webhookURL, uploadEndpoint, referenceImages, ...task } = sent;
  const given = task.inputs?.referenceImages ?? referenceImages ?? [];
  const images = record.request.references.map((id, i) => (record.references[id] ? id : given[i] ?? id));
  if (images.length) task.inputs = { ...task.inputs, referenceImages: images };
  return task;
}

/** The same from what a picture's file carries: of one picture, and without its references, which are not in the file. */
export const fromPicture = (model, parameters) => api.asking(model, { ...parameters, count: 1, references: [] });
