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
    this.input.addEventListener("input", () => this.changed());
  }

  /** A number, undefined for random and for what problem() names. */
  value() {
    return this.text() && !this.problem() ? Number(this.text()) : undefined;
  }

  /** Why this is no seed, "" when it is one. The API takes larger ones, but a page's numbers are not exact there. */
  problem() {
    if (!/^\d*$/.test(this.text())) return "A seed is a whole number: digits only, or nothing for a random one.";
    if (Number(this.text()) > Number.MAX_SAFE_INTEGER) return `Seeds above ${Number.MAX_SAFE_INTEGER} are for the API only: a browser would round this one.`;
    return "";
  }

  text() {
    return this.input.value.trim();
  }

  write(seed) {
    this.input.value = seed ?? "";
    this.changed();
  }

  used(seed) {
    this.last = seed;
  }

  focus() {
    this.input.focus();
  }

  error(message) {
    this.message.textContent = message;
    this.message.hidden = !message;
    message ? this.input.setAttribute("aria-invalid", "true") : this.input.removeAttribute("aria-invalid");
  }

  toggle() {
    this.write(this.text() ? "" : this.last ?? roll());
  }

  changed() {
    this.error(this.problem());
    this.lock.setAttribute("aria-pressed", String(this.text() !== ""));
    this.onChange();
  }
}

export const roll = () => crypto.getRandomValues(new Uint32Array(1))[0];
