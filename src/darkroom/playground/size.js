// Width and height: ratio chips for the usual shapes, exact numbers for the rest.

import { h } from "./dom.js";

const RATIOS = [["1:1", 1, 1], ["4:3", 4, 3], ["3:4", 3, 4], ["3:2", 3, 2], ["2:3", 2, 3], ["16:9", 16, 9], ["9:16", 9, 16], ["2:1", 2, 1]];

export class Size {
  constructor(root, onChange) {
    this.onChange = onChange;
    this.limits = { min: 128, max: 2048, step: 16 };
    this.largest = null;
    this.width = h("input", { id: "width", type: "number", inputmode: "numeric", "aria-describedby": "size-error size-note" });
    this.height = h("input", { id: "height", type: "number", inputmode: "numeric", "aria-describedby": "size-error size-note" });
    this.side = h("input", { type: "range", id: "side", "aria-label": "Size", "aria-valuetext": "" });
    this.chips = RATIOS.map(([name, w, height]) =>
      h("button", { type: "button", class: "chip", "aria-pressed": "false", onclick: () => this.ratio(w, height) }, shape(w, height), name));
    this.message = h("p", { class: "error", id: "size-error", hidden: true });
    root.replaceChildren(h("fieldset", { class: "field" }, h("legend", {}, "Size"),
      h("div", { class: "chips" }, this.chips),
      h("div", { class: "row" }, this.side,
        h("label", { class: "sr", for: "width" }, "Width in pixels"), this.width, h("span", { "aria-hidden": "true" }, "×"),
        h("label", { class: "sr", for: "height" }, "Height in pixels"), this.height),
      h("p", { class: "hint", id: "size-hint" }), h("p", { class: "hint", id: "size-note", role: "status", hidden: true }), this.message));
    this.hint = root.querySelector("#size-hint");
    this.note = root.querySelector("#size-note");
    for (const input of [this.width, this.height]) input.addEventListener("input", () => this.changed());
    this.side.addEventListener("input", () => this.scale(Number(this.side.value)));
  }

  /** start: the size of a form that has none. largest_side: pixels that the embedded model draws at most, null for real weights. */
  show(schema, { start, largest_side: largest }) {
    const { minimum = 128, maximum = 2048, multipleOf = 16 } = schema.properties.width;
    this.limits = { min: minimum, max: maximum, step: multipleOf };
    for (const input of [this.width, this.height, this.side]) Object.assign(input, this.limits);
    this.largest = largest;
    this.hint.textContent = `${minimum} to ${maximum} pixels a side, in multiples of ${multipleOf}.`;
    if (!this.width.value) this.write(start);
    else this.write({ width: this.clamp(Number(this.width.value)), height: this.clamp(Number(this.height.value)) });
  }

  values() {
    return { width: Number(this.width.value), height: Number(this.height.value) };
  }

  write({ width, height }) {
    this.width.value = width;
    this.height.value = height;
    this.changed();
  }

  error(message) {
    this.message.textContent = message;
    this.message.hidden = !message;
    for (const input of [this.width, this.height]) message ? input.setAttribute("aria-invalid", "true") : input.removeAttribute("aria-invalid");
  }

  focus(side) {
    (side === "height" ? this.height : this.width).focus();
  }

  // Keep the area when the shape changes.
  ratio(w, h) {
    const { width, height } = this.values();
    const area = Math.sqrt((width || 512) * (height || 512));
    const unit = area / Math.sqrt(w * h);
    this.write({ width: this.clamp(unit * w), height: this.clamp(unit * h) });
  }

  scale(side) {
    const { width, height } = this.values();
    const factor = side / Math.max(width, height);
    this.write({ width: this.clamp(width * factor), height: this.clamp(height * factor) });
  }

  clamp(value) {
    const { min, max, step } = this.limits;
    return Math.max(min, Math.min(max, Math.round(value / step) * step));
  }

  changed() {
    const { width, height } = this.values();
    this.error("");
    this.side.value = Math.max(width, height);
    this.note.hidden = !(this.largest && Math.max(width, height) > this.largest);
    this.note.textContent = this.note.hidden ? "" : `Above ${this.largest} pixels the embedded model draws the picture smaller and enlarges it.`;
    this.side.setAttribute("aria-valuetext", `${width} by ${height} pixels`);
    RATIOS.forEach(([, w, h], i) => this.chips[i].setAttribute("aria-pressed", String(Math.abs(width / height - w / h) < 0.035)));
    this.onChange();
  }
}

function shape(w, height) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const scale = 12 / Math.max(w, height);
  for (const [name, value] of Object.entries({ viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" })) svg.setAttribute(name, value);
  const box = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const [bw, bh] = [w * scale, height * scale];
  for (const [name, value] of Object.entries({ x: 7 - bw / 2, y: 7 - bh / 2, width: bw, height: bh, rx: 1 })) box.setAttribute(name, value);
  svg.append(box);
  return svg;
}
