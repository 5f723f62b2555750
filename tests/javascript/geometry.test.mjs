// Windows, ticks and scales of the canvases.

import assert from "node:assert/strict";
import { test } from "node:test";

import { moved, short, squeeze, ticks, tokenAtShare, zoomed } from "../../analysis/figures/routing_view/geometry.js";

test("a window stays within the prompt wherever it is moved", () => {
  assert.deepEqual(moved(-5, 20, 100), { from: 0, to: 20 });
  assert.deepEqual(moved(95, 20, 100), { from: 80, to: 100 });
  assert.deepEqual(moved(40.4, 20, 100), { from: 40, to: 60 });
  assert.deepEqual(moved(3, 20, 10), { from: 0, to: 10 });
});

test("zooming keeps the token where it is, and never shows fewer than 16 or more than all", () => {
  const closer = zoomed({ from: 0, to: 100 }, 0.5, 20, 100);
  assert.deepEqual(closer, { from: 10, to: 60 });
  assert.equal((20 - closer.from) / (closer.to - closer.from), 0.2);
  const closest = zoomed({ from: 40, to: 60 }, 0.1, 50, 100);
  assert.equal(closest.to - closest.from, 16);
  assert.deepEqual(zoomed({ from: 40, to: 60 }, Infinity, 50, 100), { from: 0, to: 100 });
  assert.deepEqual(zoomed({ from: 0, to: 7 }, 0.5, 3, 7), { from: 0, to: 7 });
});

test("every share of a window is a token of it", () => {
  const window = { from: 10, to: 15 };
  assert.deepEqual([-1, 0, 0.19, 0.2, 0.99, 1, 7].map((share) => tokenAtShare(window, share)), [10, 10, 10, 11, 14, 14, 14]);
});

test("ticks name the first and the last token in view, in order", () => {
  assert.deepEqual(ticks({ from: 0, to: 8192 }, 480).at(0), 0);
  assert.deepEqual(ticks({ from: 0, to: 8192 }, 480).at(-1), 8191);
  assert.equal(ticks({ from: 0, to: 8192 }, 130).length, 2);
  assert.deepEqual(ticks({ from: 5, to: 6 }, 1000), [5]);
  const some = ticks({ from: 100, to: 900 }, 2000);
  assert.deepEqual(some, [...some].sort((a, b) => a - b));
});

test("large values are squeezed, small ones are not, and the order stays", () => {
  const size = squeeze(Float32Array.from([1, -1, 1, 1, 500]));
  assert.ok(Math.abs(size(0.1) / 0.1 - 1) < 0.01);
  assert.ok(size(500) < 8 && size(500) > size(100) && size(-1) === -size(1));
  assert.equal(squeeze(Float32Array.from([0, 0]))(0), 0);
});

test("numbers have no more decimals than they need", () => {
  assert.deepEqual([0, 0.1, -0.25, 1 / 3, 2.0004].map(short), ["0", "0.1", "-0.25", "0.333", "2"]);
});
