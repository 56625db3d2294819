// Tasks in flight: place in the queue, the step they are at, a preview, a way to stop them. Survives a reload.

import * as api from "./api.js";
import { $, h, local, toast } from "./dom.js";

const STORED = "darkroom-running";
const STAGES = { queue: "Waiting", text: "Reading the prompt", references: "Looking at the references", denoise: "Developing", decode: "Fixing", encode: "Saving" };

export class Running {
  /** onDone(record): the task has ended; record is GET /v1/tasks/{id}. */
  constructor(root, onDone) {
    this.root = root;
    this.onDone = onDone;
    this.tasks = new Map();
    $("cancel-all").addEventListener("click", () => this.cancelAll());
  }

  resume() {
    for (const { id, prompt, count } of JSON.parse(sessionStorage.getItem(STORED) ?? "[]")) this.watch(id, prompt, count);
  }

  watch(id, prompt, count) {
    const view = new Card(prompt, count, () => this.cancel(id));
    const abort = new AbortController();
    this.tasks.set(id, { id, prompt, count, view, abort });
    this.root.prepend(view.element);
    this.store();
    api.follow(id, (name, data) => view.event(name, data), abort.signal)
      .then(() => api.task(id))
      .then((record) => this.onDone(record))
      .catch((error) => toast(error.message))
      .finally(() => this.drop(id));
  }

  async cancel(id) {
    try {
      await api.cancel(id);
    } catch (error) {
      toast(error.message);
    }
  }

  cancelAll() {
    for (const id of this.tasks.keys()) this.cancel(id);
  }

  drop(id) {
    this.tasks.get(id)?.view.element.remove();
    this.tasks.delete(id);
    this.store();
  }

  store() {
    const kept = [...this.tasks.values()].map(({ id, prompt, count }) => ({ id, prompt, count }));
    sessionStorage.setItem(STORED, JSON.stringify(kept));
    $("cancel-all").hidden = kept.length < 2;
    document.title = kept.length ? `(${kept.length}) Darkroom` : "Darkroom";
  }
}

class Card {
  constructor(prompt, count, cancel) {
    this.words = h("span", { class: "words" }, "Sending");
    this.bar = h("progress", { max: 1, "aria-label": "Progress" });
    this.results = Array.from({ length: count }, () => ({ done: 0, picture: h("div", { class: "frame" }) }));
    this.element = h("article", { class: "running" },
      h("div", { class: "frames" }, this.results.map((result) => result.picture)),
      h("div", { class: "row between" }, this.words, h("button", { type: "button", class: "cancel", onclick: cancel }, "Cancel")),
      this.bar, h("p", { class: "hint clip" }, prompt));
  }

  event(name, data) {
    if (name === "queue") this.words.textContent = data.position ? `Waiting: ${data.position} ${data.position === 1 ? "task" : "tasks"} ahead` : "Next in line";
    if (name === "offline") this.words.textContent = "Connection lost. Trying again…";
    if (name === "progress") this.progress(data);
    if (name === "preview") this.picture(data.result, data.image, `Preview after step ${data.step} of ${data.steps}`);
    if (name === "result" && data.url) { this.results[data.result].done = 1; this.picture(data.result, local(data.url), `Result ${data.result + 1}`); this.measure(); }
  }

  progress({ result, stage, step, steps }) {
    const before = { queue: 0, text: 0, references: 0, denoise: step / steps, decode: 0.97, encode: 0.99 }[stage] ?? 0;
    this.results[result].done = Math.min(before, 0.99);
    this.words.textContent = stage === "denoise" ? `Developing: step ${step} of ${steps}` : STAGES[stage] ?? stage;
    this.measure();
  }

  measure() {
    this.bar.value = this.results.reduce((sum, result) => sum + result.done, 0) / this.results.length;
  }

  picture(result, source, alt) {
    const frame = this.results[result]?.picture;
    if (!frame) return;
    frame.replaceChildren(h("img", { src: source, alt }));
    frame.classList.add("seen");
  }
}
