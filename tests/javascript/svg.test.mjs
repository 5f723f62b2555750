// A drawing as SVG: what a text says stays text, places are those of the canvas, and clear pixels are nothing.

import assert from "node:assert/strict";
import { test } from "node:test";

import { SvgContext, escape, pixelRuns } from "../../analysis/figures/routing_view/svg.js";

test("markup in a text stays text, and what XML does not have is replaced", () => {
  const context = new SvgContext(100, 20);
  context.fillText('</text><script>alert("1")</script>&', 1, 2);
  const drawn = String(context);
  assert.ok(drawn.includes("&lt;/text&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;"));
  assert.ok(!drawn.includes("<script"));
  assert.equal(escape("a\u0000b\ud800c\u{1F999}\uFFFE"), "a\uFFFDb\uFFFDc\u{1F999}\uFFFD");
  context.font = '12px "a<b"';
  context.fillText("x", 0, 0);
  assert.ok(String(context).includes('font-family="&quot;a&lt;b&quot;"'));
});

test("places count from the origin, and what was saved comes back", () => {
  const context = new SvgContext(100, 20);
  context.save();
  context.translate(10, 20);
  context.fillStyle = "red";
  context.globalAlpha = 0.5;
  context.fillRect(1, 2, 3, 4);
  context.restore();
  context.beginPath();
  context.moveTo(1, 1);
  context.lineTo(2.555, 3);
  context.setLineDash([4, 2]);
  context.stroke();
  assert.deepEqual(context.elements, [
    '<rect x="11" y="22" width="3" height="4" fill="red" opacity="0.5"/>',
    '<path d="M1 1L2.56 3" fill="none" stroke="#000" stroke-width="1" stroke-dasharray="4 2"/>',
  ]);
});

test("equal pixels of a line are one run, and clear ones none", () => {
  const red = [255, 0, 0, 255];
  const clear = [0, 0, 0, 0];
  const half = [0, 0, 255, 51];
  const data = Uint8ClampedArray.from([red, red, clear, half, half, half].flat());
  assert.deepEqual(pixelRuns({ data, width: 3, height: 2 }), [[0, 0, 2, "rgb(255 0 0 / 1)"], [0, 1, 3, "rgb(0 0 255 / 0.2)"]]);
});
