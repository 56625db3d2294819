// The finished picture, large: how it was made, what to do with it, and a second one to compare it with.

import { h, copy, local, seconds, toast } from "./dom.js";

const STORED = "darkroom-shown";
const NAMES = { queue: "queue", text: "text", references: "references", denoise: "denoise", decode: "decode", encode: "save" };

export class Viewer {
  /** actions: {reference(picture), again(record), restore(record)}. */
  constructor(root, strip, actions) {
    Object.assign(this, { root, strip, actions, pictures: [], current: null, other: null });
    this.empty();
  }

  empty() {
    this.root.replaceChildren(h("div", { class: "empty" }, h("p", {}, "Nothing developed yet."),
      h("p", { class: "hint" }, "Describe a picture and press Generate. Every step of it appears here.")));
  }

  /** Add the pictures of a finished task, newest first, each once, and show the first of them. */
  add(record) {
    const made = record.results.filter((result) => result.url).map((result) => ({ ...result, record }));
    const others = this.pictures.filter((picture) => !made.some((one) => one.image_id === picture.image_id));
    this.pictures = [...made, ...others].slice(0, 60);
    this.renderStrip();
    if (made.length) this.show(made[0]);
    sessionStorage.setItem(STORED, JSON.stringify([...new Set(this.pictures.map((picture) => picture.record.id))]));
  }

  /** Whether this page showed pictures before it was loaded again. */
  remembers() {
    return !this.pictures.length && sessionStorage.getItem(STORED) !== null;
  }

  /** Show them again, as far as they are among these records, which come newest first. */
  recall(records) {
    const shown = new Set(JSON.parse(sessionStorage.getItem(STORED)));
    for (const record of records.filter(({ id }) => shown.has(id)).reverse()) this.add(record);
  }

  show(picture) {
    this.current = this.pictures.find((one) => one.image_id === picture.image_id) ?? picture;
    this.other = null;
    const { record } = picture;
    this.fill(".tools button",
      h("figure", {}, h("a", { href: local(picture.url), target: "_blank", rel: "noopener" }, h("img", { class: "large", src: local(picture.url), alt: record.prompt, width: picture.width, height: picture.height })),
        h("figcaption", {}, caption(record.prompt))),
      this.facts(picture), this.tools(picture));
    this.renderStrip();
  }

  /** Show these instead; whoever is here by keyboard stays: at the control of the same name, else at the first of otherwise. */
  fill(otherwise, ...children) {
    const held = this.root.contains(document.activeElement) ? document.activeElement.textContent : null;
    this.root.replaceChildren(...children);
    if (held === null) return;
    const same = [...this.root.querySelectorAll("button, a")].find((control) => held && control.textContent === held);
    (same ?? this.root.querySelector(otherwise))?.focus({ preventScroll: true });
  }

  facts({ record, seed, width, height, stage_ms: stages = {}, warnings = [] }) {
    const times = Object.entries(stages).filter(([, ms]) => ms >= 0.5).map(([stage, ms]) => h("span", { class: "time" }, `${NAMES[stage] ?? stage} `, h("b", {}, seconds(ms))));
    const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));
    return h("div", { class: "facts" },
      h("dl", {}, fact("Model", record.model_name), fact("Seed", h("button", { class: "link", type: "button", title: "Use this seed", onclick: () => this.actions.seed(seed) }, String(seed))),
        fact("Size", `${width} × ${height}`), record.cost !== null && record.cost !== undefined ? fact("Hosted price", `$${record.cost}`) : null),
      h("p", { class: "times" }, times), warnings.map((text) => h("p", { class: "hint" }, text)));
  }

  tools(picture) {
    const { record } = picture;
    const button = (text, onclick) => h("button", { type: "button", onclick }, text);
    return h("div", { class: "row wrap tools" },
      h("a", { class: "button", href: local(picture.url), download: `${fileName(record.prompt)}.${picture.url.split(".").at(-1)}` }, "Download"),
      button("Copy", () => copyPicture(local(picture.url))),
      button("Copy link", () => copy(new URL(picture.url, location).href, "Link")),
      button("Use as reference", () => this.actions.reference(picture)),
      button("Same again, other seed", () => this.actions.again(record)),
      button("Restore settings", () => this.actions.restore(record, picture)),
      this.pictures.length > 1 ? button("Compare", () => this.compare()) : null,
      this.pictures.length > 1 ? button("Grid", () => this.grid()) : null);
  }

  compare() {
    const others = this.pictures.filter((picture) => picture !== this.current);
    this.other = others[0];
    const slider = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of the first picture is shown" });
    const top = h("img", { src: local(this.current.url), alt: `A: ${this.current.record.prompt}` });
    const bottom = h("img", { src: local(this.other.url), alt: `B: ${this.other.record.prompt}` });
    const over = h("div", { class: "over" }, top);
    const set = () => over.style.setProperty("--cut", `${100 - slider.value}%`);
    slider.addEventListener("input", set);
    const pick = h("select", { "aria-label": "Picture to compare with", onchange: (event) => { this.other = others[event.target.value]; bottom.src = local(this.other.url); bottom.alt = `B: ${this.other.record.prompt}`; } },
      others.map((picture, i) => h("option", { value: i }, `${picture.record.prompt.slice(0, 50)} · seed ${picture.seed}`)));
    const pair = h("div", { class: "pair" }, bottom, over); // one box, of A's shape: what lies over what must be as large
    pair.style.setProperty("--shape", this.current.width / this.current.height);
    this.fill("input", h("div", { class: "compare" }, pair, slider,
      h("div", { class: "row between" }, h("b", {}, "A"), h("b", {}, "B"))), pick,
    h("div", { class: "row tools" }, h("button", { type: "button", onclick: () => this.show(this.current) }, "Back to one picture")));
    set();
  }

  grid() {
    this.fill(".tile", h("div", { class: "grid" }, this.pictures.map((picture) => tile(picture, () => this.show(picture)))));
  }

  renderStrip() {
    const held = this.strip.contains(document.activeElement);
    this.strip.replaceChildren(...(this.pictures.length > 1 ? this.pictures.map((picture) => {
      const element = tile(picture, () => this.show(picture));
      element.setAttribute("aria-current", String(picture === this.current));
      return h("div", { role: "listitem" }, element);
    }) : []));
    if (held) this.strip.querySelector("[aria-current=true]")?.focus({ preventScroll: true });
  }
}

export function tile(picture, onclick) {
  const gone = () => {
    element.disabled = true;
    element.classList.add("expired");
    element.replaceChildren("Expired");
  };
  const element = h("button", { type: "button", class: "tile", onclick, title: picture.record.prompt },
    h("img", { src: local(picture.url), alt: picture.record.prompt, loading: "lazy", onerror: gone }));
  return element;
}

// A long prompt is cut until it is clicked: what to do with the picture stays in sight.
function caption(prompt) {
  return prompt.length > 180 ? h("details", { class: "caption" }, h("summary", { title: "The whole prompt" }, h("span", {}, prompt))) : prompt;
}

/** A prompt's beginning as a file's name, in whatever script it is written. */
function fileName(prompt) {
  return [...prompt].slice(0, 40).join("").replace(/[^\p{L}\p{M}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "picture";
}

// Browsers put only PNG on the clipboard.
async function copyPicture(url) {
  try {
    const bitmap = await createImageBitmap(await (await fetch(url)).blob());
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    await navigator.clipboard.write([new ClipboardItem({ "image/png": await canvas.convertToBlob() })]);
    toast("Picture copied.");
  } catch {
    toast("The browser did not allow copying pictures. Download it instead.");
  }
}
