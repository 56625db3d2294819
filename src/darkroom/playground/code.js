// The current form as a program: curl, Python and JavaScript, in both dialects, ready to run; and the last exchange.

import { h, copy } from "./dom.js";

export class Code {
  constructor(root, state) {
    this.state = state; // () => {body, runflow, key}
    this.exchange = null;
    this.dialect = pick("Dialect", ["Runware", "Runflow"], () => this.render());
    this.language = pick("Language", ["curl", "Python", "JavaScript"], () => this.render());
    this.source = h("pre", { tabindex: 0, "aria-label": "Program" });
    this.note = h("p", { class: "hint" });
    this.request = h("pre", { tabindex: 0, "aria-label": "Last request" });
    this.response = h("pre", { tabindex: 0, "aria-label": "Last response" });
    root.replaceChildren(h("div", { class: "row wrap" }, this.dialect.element, this.language.element,
      h("button", { type: "button", id: "copy-code", onclick: () => copy(this.source.textContent, "Program") }, "Copy")), this.note, this.source,
    h("h2", {}, "Last request"), this.request, h("h2", {}, "Last response"), this.response);
  }

  exchanged(request, response) {
    this.exchange = { request, response };
    this.render();
  }

  render() {
    const { body, runflow } = this.state();
    const isRunflow = this.dialect.value === "Runflow";
    const makers = isRunflow ? RUNFLOW : RUNWARE;
    this.note.textContent = isRunflow && !runflow ? "Runflow has no name for this model; choose a distilled klein model." : "Put your key in place of $DARKROOM_KEY, or leave it as it is when the server has no keys.";
    this.source.textContent = isRunflow && !runflow ? "" : makers[this.language.value](location.origin, isRunflow ? runflow : body);
    this.request.textContent = this.exchange ? pretty(this.exchange.request) : "None yet.";
    this.response.textContent = this.exchange ? pretty(this.exchange.response) : "None yet.";
  }
}

function pick(label, names, onchange) {
  const holder = { value: names[0] };
  const buttons = names.map((name) => h("button", { type: "button", "aria-pressed": String(name === names[0]), onclick: () => {
    holder.value = name;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.textContent === name)));
    onchange();
  } }, name));
  holder.element = h("div", { class: "segments", role: "group", "aria-label": label }, buttons);
  return holder;
}

const pretty = (value) => JSON.stringify(value, (_, part) => (typeof part === "string" && part.length > 400 ? `${part.slice(0, 120)}… (${part.length} characters)` : part), 2);
const indented = (value) => JSON.stringify(value, null, 2);
// Python spells three words of JSON differently; strings are left alone.
const python = (value) => indented(value).replace(/("(?:[^"\\]|\\.)*")|\b(true|false|null)\b/g, (_, string, word) => string ?? { true: "True", false: "False", null: "None" }[word]);
// The body as a here-document: photos are longer than a command's arguments may be. No line of JSON reads EOF.
const curl = (address, value) => `curl -sS ${address} \\\n  -H "Authorization: Bearer $DARKROOM_KEY" \\\n  -H "Content-Type: application/json" \\\n  --data-binary @- <<'EOF'\n${indented(value)}\nEOF\n`;

const RUNWARE = {
  curl: (base, body) => curl(`${base}/v1`, [body]),
  Python: (base, body) => `import os

import requests

response = requests.post(
    "${base}/v1",
    headers={"Authorization": f"Bearer {os.environ.get('DARKROOM_KEY', '')}"},
    json=${python([body])},
)
for image in response.json()["data"]:
    print(image["imageURL"], image["seed"])
`,
  JavaScript: (base, body) => `const response = await fetch("${base}/v1", {
  method: "POST",
  headers: {
    Authorization: \`Bearer \${process.env.DARKROOM_KEY ?? ""}\`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify(${indented([body])}),
});
for (const image of (await response.json()).data) console.log(image.imageURL, image.seed);
`,
};

const RUNFLOW = {
  curl: (base, { model, input }) => curl(`${base}/v1/models/${model}/runs`, { input: { ...input, sync_mode: true } }),
  Python: (base, { model, input }) => `import os

import requests

response = requests.post(
    "${base}/v1/models/${model}/runs",
    headers={"Authorization": f"Bearer {os.environ.get('DARKROOM_KEY', '')}"},
    json=${python({ input: { ...input, sync_mode: true } })},
)
run = response.json()
print(run["status_code"], [output["url"] for output in (run["output"] or {}).get("outputs", [])])
`,
  JavaScript: (base, { model, input }) => `const response = await fetch("${base}/v1/models/${model}/runs", {
  method: "POST",
  headers: {
    Authorization: \`Bearer \${process.env.DARKROOM_KEY ?? ""}\`,
    "Content-Type": "application/json",
  },
  body: JSON.stringify(${indented({ input: { ...input, sync_mode: true } })}),
});
const run = await response.json();
console.log(run.status_code, run.output?.outputs.map((output) => output.url));
`,
};
