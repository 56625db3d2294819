// Building elements without markup in strings, and the few page-wide helpers.

/** h("button", {class: "primary", onclick: run}, "Go") → element. Properties that start with "on" become listeners. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

let toastTimer;

/** Say something in passing, also to a screen reader. */
export function toast(text) {
  const box = $("toast");
  box.textContent = text;
  box.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => box.classList.remove("shown"), 4000);
}

/** Say something to a screen reader only. */
export function announce(text) {
  $("announced").textContent = text;
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied.`);
  } catch {
    toast(`The browser did not allow copying. Select the text and copy it by hand.`);
  }
}

/** A picture's address on this very server, whatever public name it is given to others under: the page may load no other. */
export const local = (url) => (url && new URL(url, location).pathname.startsWith("/ii/") ? new URL(url, location).pathname : url);

export const seconds = (ms) => (ms >= 10000 ? `${(ms / 1000).toFixed(0)} s` : ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`);

/** "negativePrompt" → "Negative prompt", "CFGScale" → "CFG scale". */
export function humanise(name) {
  const words = name.replace(/([a-z0-9])([A-Z])/g, "$1 $2").replace(/([A-Z]+)([A-Z][a-z])/g, "$1 $2").split(" ");
  return words.map((word, i) => (word === word.toUpperCase() && word.length > 1 ? word : i ? word.toLowerCase() : word[0].toUpperCase() + word.slice(1))).join(" ");
}
