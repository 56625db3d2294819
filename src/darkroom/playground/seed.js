// The seed: empty is random, the dice fixes a new one, the lock keeps the one that was used last.

import { h } from "./dom.js";

export class Seed {
  constructor(root, onChange) {
    this.onChange = onChange;
    this.last = null;
    this.input = h("input", { id: "seed-value", type: "text", inputmode: "numeric", pattern: "[0-9]*", placeholder: "Random", "aria-describedby": "seed-error" });
    this.lock = h("button", { type: "button", class: "quiet", "aria-pressed": "false", title: "Keep the seed that was used last", onclick: () => this.toggle() }, "Lock");
    this.message = h("p", { class: "error", id: "seed-error", hidden: true });
    root.replaceChildren(h("div", { class: "field" }, h("label", { for: "seed-value" }, "Seed"),
      h("div", { class: "row" }, this.input,
        h("button", { type: "button", class: "quiet", title: "A new seed", "aria-label": "Roll a new seed", onclick: () => this.write(roll()) }, "⚄"), this.lock), this.message));
    this.input.addEventListener("input", () => { this.error(""); this.mark(); onChange(); });
  }

  /** A JSON integer, undefined for random. Seeds above 2^53 stay text here and exact on the wire. */
  value() {
    return this.input.value.trim() || undefined;
  }

  write(seed) {
    this.input.value = seed ?? "";
    this.error("");
    this.mark();
    this.onChange();
  }

  used(seed) {
    this.last = seed;
  }

  error(message) {
    this.message.textContent = message;
    this.message.hidden = !message;
  }

  toggle() {
    if (this.value() !== undefined) this.write("");
    else this.write(this.last ?? roll());
  }

  mark() {
    this.lock.setAttribute("aria-pressed", String(this.value() !== undefined));
  }
}

export const roll = () => crypto.getRandomValues(new Uint32Array(1))[0];
