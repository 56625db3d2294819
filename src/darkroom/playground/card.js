// A task in flight as the page shows it: what is done to it, how far it is, its pictures as far as they are seen.

import { h, local } from "./dom.js";

const STAGES = { queue: "Waiting", text: "Reading the prompt", references: "Looking at the references", denoise: "Developing", decode: "Fixing", encode: "Saving" };

export class Card {
  constructor(prompt, count, cancel) {
    this.words = h("span", { class: "words" }, "Sending");
    this.bar = h("progress", { max: 1, "aria-label": "Progress" });
    this.results = Array.from({ length: count }, () => ({ done: 0, picture: h("div", { class: "frame" }) }));
    const frames = h("div", { class: "frames" }, this.results.map((result) => result.picture));
    frames.style.setProperty("--columns", Math.min(count, Math.max(4, Math.ceil(Math.sqrt(count)))));
    this.element = h("article", { class: "running" }, frames,
      h("div", { class: "row between" }, this.words, h("button", { type: "button", class: "cancel", onclick: cancel }, "Cancel")),
      this.bar, h("p", { class: "hint clip" }, prompt));
  }

  say(words) {
    this.words.textContent = words;
  }

  event(name, data) {
    if (name === "queue") this.say(place(data.position));
    if (name === "offline") this.say("Connection lost. Trying again…");
    if (name === "progress") this.progress(data);
    if (name === "preview") this.picture(data.result, data.image, `Preview after step ${data.step} of ${data.steps}`);
    if (name === "result") this.result(data.result, data.url);
  }

  /** The same from the task's record, which knows neither steps nor previews. */
  record({ status, position, results }) {
    this.say(status === "queued" ? place(position) : STAGES.denoise);
    for (const { index, url } of results) this.result(index, url);
  }

  progress({ result, stage, step, steps }) {
    const before = { queue: 0, text: 0, references: 0, denoise: step / steps, decode: 0.97, encode: 0.99 }[stage] ?? 0;
    this.results[result].done = Math.min(before, 0.99);
    this.say(stage === "denoise" ? `Developing: step ${step} of ${steps}` : STAGES[stage] ?? stage);
    this.measure();
  }

  result(index, url) {
    if (!url || !this.results[index]) return;
    this.results[index].done = 1;
    this.picture(index, local(url), `Result ${index + 1}`);
    this.measure();
  }

  measure() {
    this.bar.value = this.results.reduce((sum, result) => sum + result.done, 0) / this.results.length;
  }

  picture(result, source, alt) {
    const frame = this.results[result]?.picture;
    if (!frame || frame.firstChild?.getAttribute("src") === source) return;
    frame.replaceChildren(h("img", { src: source, alt }));
    frame.classList.add("seen");
  }
}

/** A place in the queue in words. position: null when the server did not say. */
function place(position) {
  if (position === null) return STAGES.queue;
  return position ? `Waiting: ${position} ${position === 1 ? "task" : "tasks"} ahead` : "Next in line";
}
