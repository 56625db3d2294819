// The parameters that Darkroom writes into its pictures, read back from a dropped file.

const LATIN = new TextDecoder("latin1");
const UTF8 = new TextDecoder();

/** What a Darkroom picture carries: {model, seed, and the fields of its request}, or null. blob: PNG, JPEG or WEBP. */
export async function readParameters(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const text = bytes[0] === 0x89 ? fromPng(bytes) : fromAny(bytes);
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function fromPng(bytes) {
  const view = new DataView(bytes.buffer);
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at);
    const type = LATIN.decode(bytes.subarray(at + 4, at + 8));
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (type === "iTXt" || type === "tEXt") {
      const end = data.indexOf(0);
      if (LATIN.decode(data.subarray(0, end)) === "darkroom") {
        if (type === "tEXt") return LATIN.decode(data.subarray(end + 1));
        const language = data.indexOf(0, end + 3);
        return UTF8.decode(data.subarray(data.indexOf(0, language + 1) + 1));
      }
    }
    at += 12 + length;
  }
  return null;
}

// JPEG and WEBP carry the same JSON in EXIF; its beginning is unmistakable.
function fromAny(bytes) {
  const text = UTF8.decode(bytes);
  const start = text.indexOf('{"software": "Darkroom');
  if (start < 0) return null;
  let depth = 0;
  let quoted = false;
  for (let i = start; i < text.length; i++) {
    const c = text[i];
    if (quoted) { if (c === "\\") i++; else if (c === '"') quoted = false; }
    else if (c === '"') quoted = true;
    else if (c === "{") depth++;
    else if (c === "}" && --depth === 0) return text.slice(start, i + 1);
  }
  return null;
}
