// Reference images: dropped, pasted, picked, by URL or from the gallery; reorderable, named as prompts name them.

import { h, local, toast } from "./dom.js";

const MOVED = "text/x-reference"; // a tile of the list itself, on its way to another place there

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
    this.add = h("div", { class: "row" }, this.file, h("label", { class: "button", for: "reference-file" }, "Choose files"), this.url,
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

  /** Those of a task. addresses: {image id: URL} of those that are stored pictures. */
  restore(sources, addresses) {
    this.replace(sources.map((source, i) => (isData(source) ? { source, preview: source, name: `image ${i + 1}` }
      : isId(source) ? { source, preview: local(addresses[source]) ?? null, name: `image ${i + 1}` } : address(source))));
  }

  /** For replace() after a reload; what is in the data is not kept twice. */
  stored() {
    return this.items.map((item) => (item.preview === item.source ? { ...item, preview: undefined } : item));
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
    this.put(address(source));
    this.url.value = "";
  }

  listen() {
    const takes = ({ types }) => !types.includes(MOVED) && (types.includes("Files") || types.includes("text/uri-list"));
    for (const name of ["dragover", "dragenter"]) this.box.addEventListener(name, (event) => { if (takes(event.dataTransfer)) { event.preventDefault(); this.box.classList.add("over"); } });
    for (const name of ["dragleave", "drop"]) this.box.addEventListener(name, () => this.box.classList.remove("over"));
    this.box.addEventListener("drop", (event) => { if (takes(event.dataTransfer)) { event.preventDefault(); event.stopPropagation(); this.dropped(event.dataTransfer); } });
    document.addEventListener("paste", (event) => { if (event.clipboardData.files.length && this.max) this.files(event.clipboardData.files); });
  }

  // A picture of this page comes with its address, from some browsers as a file too.
  dropped(data) {
    const source = data.getData("text/uri-list").split(/[\r\n]+/).find((line) => /^https?:/.test(line));
    const id = source && pictureId(source);
    if (id) this.put({ source: id, preview: local(source), name: "a picture made here" });
    else if (data.files.length || !source) this.files(data.files);
    else this.put(address(source));
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
    (this.list.children[Math.min(index, this.items.length - 1)]?.querySelector("button:last-child") ?? this.file).focus();
  }

  render() {
    this.error("");
    this.count.textContent = this.max > 0 && this.max < Infinity ? `${this.items.length} of ${this.max}` : "";
    this.list.replaceChildren(...this.items.map((item, i) => this.tile(item, i)));
    this.onChange();
  }

  tile(item, i) {
    const preview = item.preview ?? (isData(item.source) ? item.source : null);
    const picture = preview ? h("img", { src: preview, alt: `Image ${i + 1}: ${item.name}` }) : h("span", { class: "address" }, item.name);
    const tile = h("li", { draggable: "true" }, picture, h("span", { class: "label" }, `image ${i + 1}`),
      h("span", { class: "tools" },
        h("button", { type: "button", "aria-label": `Move image ${i + 1} to the front`, disabled: i === 0, onclick: () => this.move(i, -1) }, "‹"),
        h("button", { type: "button", "aria-label": `Move image ${i + 1} back`, disabled: i === this.items.length - 1, onclick: () => this.move(i, 1) }, "›"),
        h("button", { type: "button", "aria-label": `Remove image ${i + 1}`, onclick: () => this.remove(i) }, "×")));
    tile.addEventListener("dragstart", (event) => event.dataTransfer.setData(MOVED, String(i)));
    tile.addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes(MOVED)) event.preventDefault(); });
    tile.addEventListener("drop", (event) => {
      const from = event.dataTransfer.getData(MOVED);
      if (from !== "") { event.preventDefault(); event.stopPropagation(); this.move(Number(from), i - Number(from)); }
    });
    return tile;
  }
}

const isData = (source) => source.startsWith("data:");
export const isId = (source) => /^[0-9a-f-]{36}$/.test(source);
const address = (source) => ({ source, preview: null, name: source }); // no request to another host: the server fetches it

// The id of a stored picture by its address at this server, whatever the server's public name.
const pictureId = (source) => new URL(source).pathname.match(/^\/ii\/([0-9a-f-]{36})\.\w+$/)?.[1];

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
