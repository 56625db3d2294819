// The dialog that asks for the API key, and says why the last one was not taken.

import { key } from "./api.js";
import { $ } from "./dom.js";

export class KeyDialog {
  /** onKey(): another key is set, or none. Closing the dialog without a choice changes nothing. */
  constructor(onKey) {
    this.dialog = $("key-dialog");
    this.input = $("key");
    const choose = (value) => { key.set(value); this.input.value = ""; onKey(); };
    this.dialog.addEventListener("submit", () => choose(this.input.value.trim()));
    $("key-forget").addEventListener("click", () => { this.dialog.close(); choose(""); });
    $("key-button").addEventListener("click", () => this.open());
    this.input.addEventListener("input", () => this.error(""));
  }

  open(message = "") {
    if (!this.dialog.open) this.dialog.showModal();
    this.error(message);
    this.input.focus();
  }

  /** Asked for by the server: error is its 401. Who has given no key yet is not told that it is wrong. */
  refused(error) {
    this.open(key.get() ? error.message : "");
  }

  error(message) {
    $("key-error").textContent = message;
    $("key-error").hidden = !message;
    message ? this.input.setAttribute("aria-invalid", "true") : this.input.removeAttribute("aria-invalid");
  }
}
