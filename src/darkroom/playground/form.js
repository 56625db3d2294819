// The form, generated from the JSON Schema that the server validates with: what it shows is what it accepts.

import { h, humanise } from "./dom.js";

// Fields with a control of their own elsewhere on the page, or that the playground fills in by itself.
const OWN = new Set(["taskType", "taskUUID", "model", "positivePrompt", "width", "height", "seed", "lora",
  "inputs", "deliveryMethod", "includeCost", "outputType", "referenceImages",
  "routing", "safety.tolerance", "safety.checkInputs"]); // the last three: accepted for older clients, without effect
const NAMES = { ttl: "Keep for (seconds)", webhookURL: "Webhook address", uploadEndpoint: "Upload address", numberResults: "Results", CFGScale: "CFG scale", ultralytics: "Face refinement" };
const SWITCHED = /(^|\.)ultralytics$/; // objects whose presence alone turns a feature on
const ALWAYS_OPEN = ["negativePrompt", "steps", "CFGScale", "numberResults"];
const GROUPS = [
  ["Output", ["outputFormat", "outputQuality", "ttl", "uploadEndpoint", "webhookURL"]],
  ["Sampling", ["scheduler", "acceleration", "settings"]],
];

export class Form {
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.fields = new Map(); // dotted path → {read, write, reset, error}
  }

  /** Build the form of a schema; values that fit the new schema are kept. */
  show(schema) {
    const before = this.values();
    this.fields.clear();
    const properties = Object.entries(schema.properties).filter(([name]) => !OWN.has(name));
    const byName = new Map(properties);
    const used = new Set();
    const take = (names) => names.filter((name) => byName.has(name)).map((name) => {
      used.add(name);
      return this.control(name, byName.get(name));
    });
    const open = take(ALWAYS_OPEN);
    const groups = GROUPS.map(([title, names]) => [title, take(names)]);
    for (const [name, part] of properties) if (!used.has(name)) groups.push([title(name), this.parts(name, part)]);
    this.root.replaceChildren(...open, ...groups.filter(([, controls]) => controls.length).map(([title, controls]) => group(title, controls)));
    this.write(before);
  }

  /** What differs from the defaults, nested as on the wire; nothing of a feature that is switched off. */
  values() {
    const result = {};
    const off = [...this.fields].filter(([path, field]) => SWITCHED.test(path) && !field.read()).map(([path]) => `${path}.`);
    for (const [path, field] of this.fields) {
      const value = field.read();
      if (value !== undefined && !off.some((prefix) => path.startsWith(prefix))) put(result, path.split("."), value);
    }
    return result;
  }

  /** Set the form to these values; what a value is not given for goes back to its default. */
  write(values) {
    for (const [path, field] of this.fields) {
      const value = path.split(".").reduce((part, name) => part?.[name], values);
      value === undefined ? field.reset() : field.write(value);
    }
  }

  /** Show each message at its field; returns those that belong to no field of this form. */
  errors(messages) {
    for (const field of this.fields.values()) field.error("");
    const rest = {};
    let first = null;
    for (const [path, message] of Object.entries(messages)) {
      const field = this.fields.get(path);
      if (field) {
        field.error(message);
        first ??= field;
      } else rest[path] = message;
    }
    first?.focus();
    return rest;
  }

  // What a folded group holds: the fields of an object without a frame of their own, or the one control.
  parts(path, schema) {
    if (schema.type !== "object" || SWITCHED.test(path)) return [this.control(path, schema)];
    return Object.entries(schema.properties ?? {}).map(([name, part]) => [`${path}.${name}`, part])
      .filter(([inner]) => !OWN.has(inner)).map(([inner, part]) => this.control(inner, part));
  }

  control(path, schema) {
    if (schema.type === "object") return this.object(path, schema);
    const field = makeField(path, schema, this.onChange);
    this.fields.set(path, field);
    return field.element;
  }

  object(path, schema) {
    const parts = Object.entries(schema.properties ?? {}).map(([name, part]) => this.control(`${path}.${name}`, part));
    if (!SWITCHED.test(path)) return h("fieldset", {}, h("legend", {}, title(path)), parts);
    const power = makeSwitch(path, (on) => parts.forEach((part) => { part.hidden = !on; }), this.onChange);
    this.fields.set(path, power);
    return h("fieldset", {}, h("legend", {}, title(path)), power.element, parts);
  }
}

function group(name, controls) {
  return h("details", { class: "group" }, h("summary", {}, name), controls);
}

const title = (path) => NAMES[path.split(".").at(-1)] ?? humanise(path.split(".").at(-1));

function put(object, path, value) {
  const [name, ...rest] = path;
  if (!rest.length) object[name] = typeof value === "object" ? { ...value, ...object[name] } : value;
  else put((object[name] ??= {}), rest, value);
}

// An object that is sent as soon as it is there: {} turns the feature on with its defaults.
function makeSwitch(path, show, onChange) {
  const input = h("input", { type: "checkbox", role: "switch", id: `field-${path}` });
  const error = h("p", { class: "error", hidden: true });
  const set = (on) => { input.checked = on; show(on); };
  input.addEventListener("change", () => { show(input.checked); onChange(); });
  show(false);
  return {
    element: h("div", { class: "field inline" }, h("label", { for: `field-${path}` }, "On"), input, error),
    read: () => (input.checked ? {} : undefined),
    write: () => set(true),
    reset: () => set(false),
    focus: () => input.focus(),
    error: (message) => { error.textContent = message; error.hidden = !message; },
  };
}

function makeField(path, schema, onChange) {
  const id = `field-${path}`;
  const error = h("p", { class: "error", id: `${id}-error`, hidden: true });
  const reset = h("button", { type: "button", class: "link reset", hidden: true, "aria-label": `Reset ${path}` }, "Reset");
  const input = inputFor(id, schema);
  const fallback = schema.default;
  const changed = () => {
    reset.hidden = input.read() === undefined;
    error.hidden = true;
    input.main.removeAttribute("aria-invalid");
    onChange();
  };
  input.listen(changed);
  const field = {
    read: () => {
      const value = input.read();
      return value === fallback ? undefined : value;
    },
    write: (value) => { input.write(value); reset.hidden = value === fallback; },
    reset: () => { input.write(fallback); reset.hidden = true; },
    focus: () => {
      for (let parent = element.parentElement; parent; parent = parent.parentElement) if (parent.tagName === "DETAILS") parent.open = true;
      input.main.focus();
    },
    error: (message) => {
      error.textContent = message;
      error.hidden = !message;
      message ? input.main.setAttribute("aria-invalid", "true") : input.main.removeAttribute("aria-invalid");
    },
  };
  reset.addEventListener("click", () => { field.reset(); onChange(); });
  input.main.setAttribute("aria-describedby", `${id}-error`);
  const label = h("label", { for: id }, title(path));
  const hint = ALWAYS_OPEN.includes(path) ? null : h("p", { class: "hint" }, schema.description);
  const element = h("div", { class: `field ${input.inline ? "inline" : ""}` },
    h("div", { class: "row between" }, label, reset), input.element, hint, error);
  field.element = element;
  field.reset();
  return field;
}

function inputFor(id, schema) {
  if (schema.enum) return choice(id, schema);
  if (schema.type === "boolean") return toggle(id);
  if (schema.type === "integer" || schema.type === "number") return number(id, schema);
  return text(id, schema);
}

function choice(id, schema) {
  const options = schema.enum.map((value) => h("option", { value }, String(value)));
  if (schema.default === undefined) options.unshift(h("option", { value: "" }, "Model's own"));
  const main = h("select", { id }, options);
  return {
    main, element: main,
    read: () => main.value || undefined,
    write: (value) => { main.value = value ?? ""; },
    listen: (run) => main.addEventListener("change", run),
  };
}

function toggle(id) {
  const main = h("input", { id, type: "checkbox", role: "switch" });
  return {
    main, element: main, inline: true,
    read: () => main.checked,
    write: (value) => { main.checked = Boolean(value); },
    listen: (run) => main.addEventListener("change", run),
  };
}

// A slider where the schema knows both ends, always with the exact number beside it.
function number(id, schema) {
  const step = schema.multipleOf ?? (schema.type === "integer" ? 1 : "any");
  const limits = { min: schema.minimum, max: schema.maximum, step };
  const placeholder = schema.default === undefined ? "auto" : String(schema.default);
  const main = h("input", { id, type: "number", inputmode: "decimal", placeholder, ...limits });
  const ranged = schema.minimum !== undefined && schema.maximum !== undefined && schema.maximum <= 4096;
  const slider = ranged ? h("input", { type: "range", tabindex: -1, "aria-hidden": "true", ...limits }) : null;
  const sync = () => { if (slider) slider.value = main.value === "" ? schema.default ?? schema.minimum : main.value; };
  main.addEventListener("input", sync);
  return {
    main,
    element: h("div", { class: "number" }, slider, main),
    read: () => (main.value === "" ? undefined : Number(main.value)),
    write: (value) => { main.value = value ?? ""; sync(); },
    listen: (run) => {
      main.addEventListener("input", run);
      slider?.addEventListener("input", () => { main.value = slider.value; run(); });
    },
  };
}

function text(id, schema) {
  const long = (schema.maxLength ?? 0) > 500 || /prompt/i.test(id);
  const main = long ? h("textarea", { id, rows: 2 }) : h("input", { id, type: schema.format === "uri" ? "url" : "text" });
  return {
    main, element: main,
    read: () => main.value || undefined,
    write: (value) => { main.value = value ?? ""; },
    listen: (run) => main.addEventListener("input", run),
  };
}
