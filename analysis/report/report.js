// A report: one view for each trace, in the language that the reader chooses. The data are in the document.

import { RoutingView } from "../figures/routing_view/view.js";
import { inLanguages } from "./languages.js";

// The bytes of `view_data`, which the document holds deflated and in base64.
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The same bytes with other words in their header.
function inOtherWords(bytes, words) {
  const start = 4 + new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)));
  const encoded = new TextEncoder().encode(JSON.stringify({ ...header, ...words }));
  const found = new Uint8Array(4 + encoded.length + bytes.length - start);
  new DataView(found.buffer).setUint32(0, encoded.length, true);
  found.set(encoded, 4);
  found.set(bytes.subarray(start), 4 + encoded.length);
  return found;
}

function save(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const data = await Promise.all([...document.querySelectorAll("script.data")].map((each) => unpacked(each.textContent.trim())));
const words = JSON.parse(document.querySelector("script.words").textContent);
const routings = [...document.querySelectorAll(".view")].map((each) => new RoutingView(each.shadowRoot));

for (const button of document.querySelectorAll("[data-prompt]")) {
  button.addEventListener("click", () => save(routings[button.dataset.prompt].data.text, "prompt.txt"));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => routings.forEach((view) => view.paint()));
inLanguages(words.titles, (language) => {
  routings.forEach((view, index) => view.show(inOtherWords(data[index], words.traces[language][index])));
});
document.documentElement.dataset.ready = "true";
