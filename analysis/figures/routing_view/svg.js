// A canvas context whose drawing becomes SVG: those methods that the views draw with. Strings only, no DOM.

const ESCAPED = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
const ANCHORS = { left: "start", right: "end", center: "middle" };
// characters that XML does not have, alone or escaped
const OUTSIDE = new RegExp("[^\\t\\n\\r\\u0020-\\uD7FF\\uE000-\\uFFFD\\u{10000}-\\u{10FFFF}]", "gu");

export class SvgContext {
  constructor(width, height) {
    Object.assign(this, { fillStyle: "#000", strokeStyle: "#000", lineWidth: 1, globalAlpha: 1, font: "11px sans-serif", textAlign: "left" });
    this.width = width;
    this.height = height;
    this.elements = [];
    this.origin = [0, 0];
    this.dash = [];
    this.path = "";
    this.saved = [];
  }

  save() {
    const { fillStyle, strokeStyle, lineWidth, globalAlpha, font, textAlign, origin, dash } = this;
    this.saved.push({ fillStyle, strokeStyle, lineWidth, globalAlpha, font, textAlign, origin, dash });
  }

  restore() {
    Object.assign(this, this.saved.pop());
  }

  translate(x, y) {
    this.origin = [this.origin[0] + x, this.origin[1] + y];
  }

  setLineDash(dash) {
    this.dash = dash;
  }

  add(tag, attributes, content = "") {
    const all = { ...attributes, ...(this.globalAlpha < 1 ? { opacity: this.globalAlpha } : {}) };
    const written = Object.entries(all).map(([name, value]) => ` ${name}="${typeof value === "number" ? round(value) : escape(value)}"`).join("");
    this.elements.push(content ? `<${tag}${written}>${content}</${tag}>` : `<${tag}${written}/>`);
  }

  at(x, y) {
    return { x: x + this.origin[0], y: y + this.origin[1] };
  }

  get stroked() {
    const dash = this.dash.length ? { "stroke-dasharray": this.dash.join(" ") } : {};
    return { fill: "none", stroke: this.strokeStyle, "stroke-width": this.lineWidth, ...dash };
  }

  fillRect(x, y, width, height) {
    this.add("rect", { ...this.at(x, y), width, height, fill: this.fillStyle });
  }

  strokeRect(x, y, width, height) {
    this.add("rect", { ...this.at(x, y), width, height, ...this.stroked });
  }

  beginPath() {
    this.path = "";
  }

  moveTo(x, y) {
    const at = this.at(x, y);
    this.path += `M${round(at.x)} ${round(at.y)}`;
  }

  lineTo(x, y) {
    const at = this.at(x, y);
    this.path += `L${round(at.x)} ${round(at.y)}`;
  }

  stroke() {
    this.add("path", { d: this.path, ...this.stroked });
  }

  // With `width`, the text takes so much room whatever the font of the reader.
  fillText(text, x, y, width) {
    const [, size, family] = this.font.match(/([\d.]+)px\s+(.*)$/);
    const room = width ? { textLength: width, lengthAdjust: "spacingAndGlyphs" } : {};
    this.add("text", {
      ...this.at(x, y), "font-size": Number(size), "font-family": family, fill: this.fillStyle,
      "text-anchor": ANCHORS[this.textAlign], "xml:space": "preserve", ...room,
    }, escape(text));
  }

  toString() {
    const { width, height, elements } = this;
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${round(width)}" height="${round(height)}" viewBox="0 0 ${round(width)} ${round(height)}">\n${elements.join("\n")}\n</svg>\n`;
  }
}

export function escape(text) {
  return text.replace(OUTSIDE, "\uFFFD").replace(/[&<>"]/g, (character) => ESCAPED[character]);
}

// Runs of equal pixels in the lines of a picture: [first column, line, length, "rgb(…)"]; clear pixels are left out.
export function pixelRuns({ data, width, height }) {
  const runs = [];
  for (let line = 0; line < height; line++) {
    for (let column = 0; column < width; ) {
      const colour = (at) => data.slice(4 * (line * width + at), 4 * (line * width + at) + 4).join(" ");
      const first = column;
      const own = colour(first);
      while (column < width && colour(column) === own) column++;
      const [red, green, blue, alpha] = own.split(" ").map(Number);
      if (alpha) runs.push([first, line, column - first, `rgb(${red} ${green} ${blue} / ${round(alpha / 255)})`]);
    }
  }
  return runs;
}

function round(number) {
  return Math.round(number * 100) / 100;
}
