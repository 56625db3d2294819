// The key's own pictures, found by prompt and model; a click brings back how one was made.

import * as api from "./api.js";
import { h } from "./dom.js";
import { tile } from "./viewer.js";

export class Gallery {
  constructor(root, actions) {
    this.actions = actions;
    this.cursor = "";
    this.turn = 0; // of the last question: earlier ones are not answered any more
    this.search = h("input", { type: "search", id: "gallery-search", placeholder: "Search prompts", "aria-label": "Search prompts" });
    this.model = h("select", { "aria-label": "Show model" });
    this.grid = h("div", { class: "grid" });
    this.words = h("p", { class: "hint", role: "status" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.load() }, "Show more");
    root.replaceChildren(h("div", { class: "row wrap" }, this.search, this.model), this.words, this.grid, this.more,
      h("p", { class: "hint" }, "Drop a picture that was made here anywhere on the page to get its settings back."));
    let timer;
    this.search.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.refresh(), 250); });
    this.model.addEventListener("change", () => this.refresh());
  }

  models(cards) {
    this.model.replaceChildren(h("option", { value: "" }, "All models"), ...cards.map((card) => h("option", { value: card.id }, card.name)));
  }

  refresh() {
    this.cursor = "";
    this.grid.replaceChildren();
    return this.load();
  }

  async load() {
    const turn = ++this.turn;
    try {
      let made = [];
      do { // a page of failed tasks shows nothing
        const page = await api.tasks({ search: this.search.value, model: this.model.value, cursor: this.cursor });
        if (turn !== this.turn) return;
        made = page.items.flatMap((record) => record.results.filter((result) => result.url).map((result) => ({ ...result, record })));
        this.cursor = page.next ?? "";
      } while (this.cursor && !made.length);
      this.grid.append(...made.map((picture) => this.tile(picture)));
      this.more.hidden = !this.cursor;
      this.words.textContent = this.grid.children.length ? "" : "No pictures found.";
    } catch (error) {
      if (turn === this.turn) this.words.textContent = error.message;
    }
  }

  tile(picture) {
    return h("div", { class: "card" }, tile(picture, () => this.actions.open(picture)),
      h("div", { class: "row between" }, h("span", { class: "hint clip" }, picture.record.prompt),
        h("button", { type: "button", class: "link", "aria-label": `Use as reference: ${picture.record.prompt}`, onclick: () => this.actions.reference(picture) }, "+ ref")));
  }
}
