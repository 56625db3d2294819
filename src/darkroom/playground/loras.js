// LoRA adapters of a request: pick from those the server knows, each with its weight.

import { h } from "./dom.js";

export class Loras {
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.known = [];
    this.items = []; // {model, weight}
    this.schema = null;
    this.message = h("p", { class: "error", id: "lora-error", hidden: true });
  }

  show(schema, known) {
    this.known = known;
    this.schema = schema.properties.lora?.items?.properties ?? null;
    this.root.hidden = !this.schema;
    if (this.schema) this.render();
  }

  values() {
    return this.schema ? this.items.filter((item) => item.model) : [];
  }

  replace(items) {
    this.items = items.map(({ model, weight = 1 }) => ({ model, weight }));
    if (this.schema) this.render();
  }

  error(message) {
    this.message.textContent = message;
    this.message.hidden = !message;
  }

  focus() {
    this.root.querySelector("details").open = true;
    this.root.querySelector("li input, button").focus();
  }

  remove(index) {
    this.items.splice(index, 1);
    this.render();
    const left = this.root.querySelectorAll("li .quiet");
    (left[Math.min(index, left.length - 1)] ?? this.root.querySelector("details > button")).focus();
  }

  render() {
    const names = this.known.map((adapter) => h("option", { value: adapter.id }, adapter.name));
    this.error("");
    const open = this.items.length > 0 || Boolean(this.root.querySelector("details")?.open);
    const add = h("button", { type: "button", class: "quiet", onclick: () => { this.items.push({ model: "", weight: 1 }); this.render(); this.root.querySelector("li:last-child input").focus(); } }, "Add a LoRA");
    this.root.replaceChildren(h("details", { class: "group", open }, h("summary", {}, "LoRA"),
      h("datalist", { id: "lora-names" }, names),
      h("ul", { class: "loras" }, this.items.map((item, i) => this.line(item, i))),
      this.known.length ? null : h("p", { class: "hint" }, "None installed yet: ", h("code", {}, "darkroom lora add FILE --air ID")),
      add, this.message));
    this.onChange();
  }

  line(item, i) {
    const { minimum, maximum, multipleOf } = this.schema.weight;
    const limits = { min: minimum, max: maximum, step: multipleOf };
    const model = h("input", { type: "text", list: "lora-names", value: item.model, "aria-label": `LoRA ${i + 1}`, placeholder: "air:lora@1",
      "aria-describedby": "lora-error",
      oninput: (event) => { item.model = event.target.value.trim(); this.error(""); this.onChange(); } });
    const weight = h("input", { type: "number", ...limits, value: item.weight, "aria-label": `Weight of LoRA ${i + 1}` });
    const slider = h("input", { type: "range", ...limits, value: item.weight, tabindex: -1, "aria-hidden": "true" });
    weight.addEventListener("input", () => { item.weight = Number(weight.value); slider.value = weight.value; this.onChange(); });
    slider.addEventListener("input", () => { item.weight = Number(slider.value); weight.value = slider.value; this.onChange(); });
    return h("li", {}, h("div", { class: "row" }, model, h("button", { type: "button", class: "quiet", "aria-label": `Remove LoRA ${i + 1}`, onclick: () => this.remove(i) }, "×")),
      h("div", { class: "number" }, slider, weight));
  }
}
