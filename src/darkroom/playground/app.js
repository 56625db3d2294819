// The playground: one form, one stage, three views. Everything it does goes through the public API.

import * as api from "./api.js";
import { Code } from "./code.js";
import { $, h, local, toast } from "./dom.js";
import { Form } from "./form.js";
import { Gallery } from "./gallery.js";
import { KeyDialog } from "./keys.js";
import { Loras } from "./loras.js";
import { readParameters } from "./metadata.js";
import { References, isId } from "./references.js";
import { fromPicture, original } from "./request.js";
import { Running } from "./running.js";
import { Seed } from "./seed.js";
import { Size } from "./size.js";
import { Viewer } from "./viewer.js";

const EXAMPLES = ["a red circle above a blue square", "a large yellow star on a night sky", "a green triangle left of an orange heart on a meadow",
  "a small white circle and a purple cross on a beach", "three pink hearts on a grey background"];
const STORED_FORM = "darkroom-draft";
const HISTORY = "darkroom-prompts";

// locked: the server wants another key. unanswered: the form says that the server does not answer.
const state = { cards: [], card: null, schema: null, adapters: [], starting: false, ready: false, locked: false, unanswered: false };
const changed = () => { if (state.ready) { remember(); if (!$("code").hidden) code.render(); } };
const form = new Form($("fields"), changed);
const size = new Size($("size"), changed);
const seed = new Seed($("seed"), changed);
const references = new References($("references"), changed);
const loras = new Loras($("loras"), changed);
const actions = {
  seed: (value) => { seed.write(value); toast("Seed set."); },
  reference: (picture) => { references.put({ source: picture.image_id, preview: local(picture.url), name: picture.record.prompt }); view("make"); toast("Added as reference."); },
  again: (record) => attempt(async () => {
    const { seed: _, ...task } = await original(record);
    send({ ...task, taskUUID: uuid() });
  }),
  restore: (record, picture) => attempt(async () => {
    const { width, height } = record.request; // an edit may leave its size to the first reference
    if (!await restore({ width, height, ...await original(record) }, record.model, picture.seed, record.references)) return;
    view("make");
    $("prompt").focus();
    toast("Settings restored.");
  }),
  open: (picture) => { actions.restore(picture.record, picture); viewer.add(picture.record); viewer.show(picture); },
};
const viewer = new Viewer($("viewer"), $("strip"), actions);
const gallery = new Gallery($("gallery"), actions);
const running = new Running($("running"), finished, locked);
const keys = new KeyDialog(start);
const code = new Code($("code"), () => ({ body: body(), runflow: runflow() }));

async function start() {
  if (state.starting) return;
  state.starting = true;
  try {
    const [{ items, demo }, known] = await Promise.all([api.cards(), api.adapters()]);
    Object.assign(state, { cards: items, adapters: known.items });
    banner(demo);
    gallery.models(items);
    $("model").replaceChildren(...items.map((card) => h("option", { value: card.id, disabled: !card.available }, card.available ? card.name : `${card.name} (not installed)`)));
    const stored = state.ready ? null : JSON.parse(sessionStorage.getItem(STORED_FORM) ?? "null");
    await choose(state.card?.id ?? stored?.task.model ?? items.find((card) => card.preferred && card.available)?.id ?? items.find((card) => card.available)?.id);
    if (stored) await recall(stored);
    if (!state.ready && viewer.remembers()) viewer.recall((await api.tasks()).items);
    Object.assign(state, { ready: true, locked: false });
    $("generate").disabled = $("model").disabled = false;
    running.resume();
    connected(true);
  } catch (error) {
    connected(false);
    report(error);
  } finally {
    state.starting = false;
  }
}

/** A failure that belongs to no field. */
function report(error) {
  if (error.status === 401) locked(error);
  else toast(error.message);
}

function locked(error) {
  state.locked = true;
  connected(false);
  keys.refused(error);
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    report(error);
  }
}

let choices = 0;

/** Change to a model; false when another was chosen meanwhile. Nothing is sent before its form is there. */
async function choose(id) {
  const choice = ++choices;
  const card = state.cards.find((one) => one.id === id) ?? state.cards[0];
  $("generate").disabled = true;
  try {
    const schema = await api.schema(card.id);
    if (choice !== choices) return false;
    Object.assign(state, { card, schema });
  } catch (error) {
    if (choice !== choices) return false;
    if (state.card) $("model").value = state.card.id;
    throw error;
  } finally {
    if (choice === choices) $("generate").disabled = !state.ready;
  }
  $("model").value = state.card.id;
  $("model-note").textContent = state.card.description;
  if ($("connection").classList.contains("on")) connected(true);
  form.show(state.schema);
  size.show(state.schema, state.card);
  references.show(state.schema);
  loras.show(state.schema, state.adapters);
  changed();
  return true;
}

/** The Runware task of the form as it stands. */
function body() {
  const task = { taskType: "imageInference", taskUUID: crypto.randomUUID?.() ?? uuid(), model: state.card.id, positivePrompt: $("prompt").value.trim(), ...size.values(), ...form.values(), includeCost: true };
  if (seed.value() !== undefined) task.seed = seed.value();
  if (references.values().length) task.inputs = { referenceImages: references.values() };
  if (loras.values().length) task.lora = loras.values();
  return task;
}

/** The same as a Runflow run, where Runflow knows the model. */
function runflow() {
  const images = references.values();
  const model = state.card.runflow.find((entry) => entry.edit === images.length > 0);
  if (!model) return null;
  const task = body();
  const input = { prompt: task.positivePrompt, ...size.values(), num_images: task.numberResults, num_inference_steps: task.steps, seed: task.seed,
    output_format: { JPG: "jpeg", PNG: "png", WEBP: "webp" }[task.outputFormat] ?? "jpeg", image_urls: images.length ? images.map(absolute) : undefined };
  return { model: model.id, input: JSON.parse(JSON.stringify(input)) };
}

// Runflow takes addresses, not ids: a picture of this server has one.
const absolute = (source) => (isId(source) ? new URL(references.items.find((item) => item.source === source)?.preview ?? source, location).href : source);

function generate() {
  if ($("generate").disabled) return;
  const task = body();
  clearErrors();
  if (!task.positivePrompt) return refuse({ fields: { positivePrompt: "Describe the picture first." }, message: "" });
  if (seed.problem()) return refuse({ fields: { seed: seed.problem() }, message: "" });
  rememberPrompt(task.positivePrompt);
  send(task);
}

async function send(task) {
  clearErrors();
  view("make");
  const request = { ...task, deliveryMethod: "async" };
  running.show(task.taskUUID, task.positivePrompt, task.numberResults ?? 1);
  try {
    code.exchanged([request], await api.send(request));
    running.sent(task.taskUUID);
    connected(true);
  } catch (error) {
    running.drop(task.taskUUID);
    code.exchanged([request], error.body ?? { message: error.message });
    if (error.status === 401) return locked(error);
    if (error.status === 0) connected(false);
    refuse(error);
    state.unanswered = error.status === 0;
  }
}

function finished(record) {
  for (const result of record.results) if (result.seed !== undefined) seed.used(result.seed);
  code.exchange = { request: code.exchange?.request ?? record.wire, response: record };
  viewer.add(record);
  if (record.status === "cancelled") toast("Cancelled.");
  const fault = record.fault ?? record.results.find((result) => result.fault)?.fault;
  if (fault) refuse({ message: fault.message, fields: fault.parameter ? { [fault.parameter]: fault.message } : {} });
}

/** Put a refusal where it belongs: at its field, or above the form. */
function refuse({ fields, message }) {
  const rest = form.errors(fields);
  const shown = [];
  for (const [path, text] of Object.entries(rest)) {
    if (path === "positivePrompt") { promptError(text); $("prompt").focus(); }
    else if (path === "width" || path === "height") { size.error(text); size.focus(path); }
    else if (path === "seed") { seed.error(text); seed.focus(); }
    else if (path.startsWith("inputs")) references.error(text);
    else if (path.startsWith("lora")) { loras.error(text); loras.focus(); }
    else shown.push(text);
  }
  if (!Object.keys(fields).length) shown.push(message);
  $("form-error").textContent = shown.join(" ");
  $("form-error").hidden = !shown.length;
  document.querySelector("#form .error:not([hidden])")?.scrollIntoView({ block: "nearest" }); // focus shows the field, not what is below it
}

function promptError(text) {
  $("prompt-error").textContent = text;
  $("prompt-error").hidden = !text;
  text ? $("prompt").setAttribute("aria-invalid", "true") : $("prompt").removeAttribute("aria-invalid");
}

function clearErrors() {
  form.errors({});
  promptError("");
  for (const part of [size, seed, references, loras]) part.error("");
  $("form-error").hidden = true;
  state.unanswered = false;
}

/**
 * Bring the form back to a task; false when another model was chosen meanwhile. oneSeed: of the picture that was clicked,
 * when the task made several. addresses: {image id: URL}, to show references that are stored pictures.
 */
async function restore(wire, model, oneSeed, addresses = {}) {
  const other = model && model !== state.card.id && state.cards.some((card) => card.id === model && card.available);
  if (other && !await choose(model)) return false;
  $("prompt").value = wire.positivePrompt ?? "";
  form.write(wire);
  if (wire.width) size.write(wire);
  seed.write(oneSeed ?? wire.seed ?? "");
  if (oneSeed !== undefined && wire.numberResults > 1) form.write({ ...wire, numberResults: 1 });
  loras.replace(wire.lora ?? []);
  references.restore(wire.inputs?.referenceImages ?? [], addresses);
  return true;
}

function remember() {
  const { taskUUID, inputs, ...task } = body();
  try {
    sessionStorage.setItem(STORED_FORM, JSON.stringify({ task, references: references.stored() }));
  } catch {
    sessionStorage.setItem(STORED_FORM, JSON.stringify({ task, references: [] })); // large pictures do not fit
  }
}

/** The form as it was before a reload, and what was put into it since. */
async function recall({ task, references: items }) {
  const [typed, added] = [$("prompt").value, references.items];
  await restore({ ...task, positivePrompt: typed || task.positivePrompt }, task.model);
  references.replace([...items, ...added]);
}

function rememberPrompt(prompt) {
  const prompts = [prompt, ...prompts_().filter((one) => one !== prompt)].slice(0, 30);
  localStorage.setItem(HISTORY, JSON.stringify(prompts));
}

const prompts_ = () => JSON.parse(localStorage.getItem(HISTORY) ?? "[]");

function toggleHistory(open = $("history-list").hidden) {
  const list = $("history-list");
  const use = (prompt) => { $("prompt").value = prompt; toggleHistory(false); $("prompt").focus(); changed(); };
  list.replaceChildren(...(prompts_().length ? prompts_().map((prompt) => h("li", { role: "option", tabindex: 0, "aria-selected": "false", onclick: () => use(prompt),
    onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); use(prompt); } if (event.key === "Escape") { toggleHistory(false); $("history").focus(); } } }, prompt)) : [h("li", { role: "option", "aria-selected": "false" }, "Nothing yet.")]));
  list.hidden = !open;
  $("history").setAttribute("aria-expanded", String(open));
  if (open) list.querySelector("[tabindex]")?.focus();
}

function view(name) {
  const narrow = matchMedia("(max-width: 820px)").matches && document.body.dataset.view !== name;
  document.body.dataset.view = name;
  for (const one of ["make", "gallery", "code"]) {
    $(one).hidden = one !== name;
    $(`view-${one}`).setAttribute("aria-pressed", String(one === name));
  }
  if (narrow) scrollTo(0, 0); // one view at a time: each begins at its top
  if (name === "gallery") gallery.refresh();
  if (name === "code") code.render();
}

function banner(demo) {
  $("demo").hidden = !demo;
  if (demo) $("demo").replaceChildren(h("b", {}, "Demo mode. "), "The small embedded model draws these pictures: simple shapes on simple backgrounds. For the real ones: ", h("code", {}, demo));
}

function connected(yes) {
  $("connection").classList.toggle("on", yes);
  const text = yes ? state.card?.name ?? "Connected" : state.locked ? "Key needed" : "Not connected";
  if ($("connection-text").textContent !== text) $("connection-text").textContent = text; // each change is read out
}

async function heartbeat() {
  try {
    const response = await fetch("/health");
    if (state.locked) return; // until there is another key
    const was = $("connection").classList.contains("on");
    connected(response.ok);
    if (response.ok && !state.ready) start();
    else if (!was && response.ok) {
      toast("Connected again.");
      if (state.unanswered) clearErrors();
    }
  } catch {
    connected(false);
  }
}

// Plain http on another host has no randomUUID.
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

async function settingsFrom(file) {
  const parameters = await readParameters(file);
  if (!parameters?.prompt) return toast(`${file.name} carries no Darkroom settings. Drop it on “Reference images” to use it as one.`);
  const known = state.cards.some((card) => card.id === parameters.model); // a file may come from another server
  const task = await fromPicture(known ? parameters.model : state.card.id, parameters);
  if (!await restore(task, parameters.model, parameters.seed)) return;
  view("make");
  toast("Settings restored from the picture.");
}

function theme(next) {
  document.documentElement.dataset.theme = next;
  localStorage.setItem("darkroom-theme", next);
}

for (const name of ["make", "gallery", "code"]) $(`view-${name}`).addEventListener("click", () => view(name));
$("form").addEventListener("submit", (event) => { event.preventDefault(); generate(); });
$("form").addEventListener("keydown", (event) => { if (event.key === "Enter" && event.target.tagName === "INPUT" && !event.ctrlKey && !event.metaKey) event.preventDefault(); });
document.addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("key-dialog").open) { event.preventDefault(); if (!event.repeat) generate(); } });
$("model").addEventListener("change", () => attempt(() => choose($("model").value)));
$("prompt").addEventListener("input", () => { promptError(""); changed(); });
$("example").addEventListener("click", () => { const at = EXAMPLES.indexOf($("prompt").value); $("prompt").value = EXAMPLES[(at + 1) % EXAMPLES.length]; promptError(""); changed(); });
$("history").addEventListener("click", () => toggleHistory());
$("theme").addEventListener("click", () => {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  theme(dark ? "light" : "dark");
});
const hasFiles = (event) => event.dataTransfer.types.includes("Files"); // text is dragged within the prompt
document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  const file = event.dataTransfer.files[0];
  if (file) attempt(() => settingsFrom(file));
});
const stored = localStorage.getItem("darkroom-theme");
if (stored) theme(stored);
start();
setInterval(heartbeat, 5000);
