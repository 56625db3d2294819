// Reference images: dropped, pasted, picked, by URL or from the gallery; reorderable, named as prompts name them.

import { h, toast } from "./dom.js";

export class References {
  constructor(root, onChange) {
    this.onChange = onChange;
    this.items = []; // {source: what goes on the wire, preview: what the page shows, name}
    this.max = Infinity; // until the model is known: what is chosen before that is kept
    this.list = h("ol", { class: "references" });
    this.file = h("input", { type: "file", id: "reference-file", accept: "image/*", multiple: true, class: "sr", onchange: () => this.files(this.file.files) });
    this.url = h("input", { type: "url", id: "reference-url", placeholder: "https://…", "aria-label": "Address of a reference image" });
    this.count = h("span", { class: "hint" });
    this.message = h("p", { class: "error", hidden: true });
    this.add = h("div", { class: "row" }, h("label", { class: "button", for: "reference-file" }, "Choose files"), this.file, this.url,
      h("button", { type: "button", onclick: () => this.fromUrl() }, "Add"));
    this.root = root;
    this.box = h("fieldset", { class: "field drop" }, h("legend", {}, "Reference images ", this.count), this.list,
      h("p", { class: "hint" }, "Drop or paste pictures here. Prompts call them “image 1”, “image 2”…"), this.add, this.message);
    root.replaceChildren(this.box);
    this.url.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); this.fromUrl(); } });
    this.listen();
  }

  show(schema) {
    this.max = schema.properties.inputs?.properties?.referenceImages?.maxItems ?? 0;
    this.root.hidden = this.max === 0;
    if (this.items.length > this.max) {
      this.items.length = this.max;
      toast(`This model takes ${this.max} reference images; the rest were left out.`);
    }
    this.render();
  }

  values() {
    return this.items.map((item) => item.source);
  }

  put(item) {
    if (this.items.length >= this.max) return toast(`This model takes at most ${this.max} reference images.`);
    this.items.push(item);
    this.render();
  }

  replace(items) {
    this.items = items.slice(0, this.max);
    this.render();
  }

  error(message) {
    this.message.textContent = message;
    this.message.hidden = !message;
  }

  async files(files) {
    for (const file of files) {
      if (!file.type.startsWith("image/")) { toast(`${file.name} is not an image.`); continue; }
      const source = await dataUri(file);
      this.put({ source, preview: source, name: file.name });
    }
    this.file.value = "";
  }

  fromUrl() {
    const source = this.url.value.trim();
    if (!source) return;
    this.put({ source, preview: null, name: source }); // no request to another host: the server fetches it
    this.url.value = "";
  }

  listen() {
    for (const name of ["dragover", "dragenter"]) this.box.addEventListener(name, (event) => { event.preventDefault(); this.box.classList.add("over"); });
    for (const name of ["dragleave", "drop"]) this.box.addEventListener(name, () => this.box.classList.remove("over"));
    this.box.addEventListener("drop", (event) => { event.preventDefault(); event.stopPropagation(); this.files(event.dataTransfer.files); });
    document.addEventListener("paste", (event) => { if (event.clipboardData.files.length && this.max) this.files(event.clipboardData.files); });
  }

  move(from, by) {
    const to = from + by;
    if (to < 0 || to >= this.items.length) return;
    const [item] = this.items.splice(from, 1);
    this.items.splice(to, 0, item);
    this.render();
    this.list.children[to].querySelector("button:not([disabled])")?.focus();
  }

  remove(index) {
    this.items.splice(index, 1);
    this.render();
  }

  render() {
    this.error("");
    this.count.textContent = this.max > 0 && this.max < Infinity ? `${this.items.length} of ${this.max}` : "";
    this.list.replaceChildren(...this.items.map((item, i) => this.tile(item, i)));
    this.onChange();
  }

  tile(item, i) {
    const picture = item.preview ? h("img", { src: item.preview, alt: `Image ${i + 1}: ${item.name}` }) : h("span", { class: "address" }, item.name);
    const tile = h("li", { draggable: "true" }, picture, h("span", { class: "label" }, `image ${i + 1}`),
      h("span", { class: "tools" },
        h("button", { type: "button", "aria-label": `Move image ${i + 1} to the front`, disabled: i === 0, onclick: () => this.move(i, -1) }, "‹"),
        h("button", { type: "button", "aria-label": `Move image ${i + 1} back`, disabled: i === this.items.length - 1, onclick: () => this.move(i, 1) }, "›"),
        h("button", { type: "button", "aria-label": `Remove image ${i + 1}`, onclick: () => this.remove(i) }, "×")));
    tile.addEventListener("dragstart", (event) => event.dataTransfer.setData("text/x-reference", String(i)));
    tile.addEventListener("drop", (event) => {
      const from = event.dataTransfer.getData("text/x-reference");
      if (from !== "") { event.preventDefault(); event.stopPropagation(); this.move(Number(from), i - Number(from)); }
    });
    return tile;
  }
}

export function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
