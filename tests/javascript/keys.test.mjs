// What the keys change.

import assert from "node:assert/strict";
import { test } from "node:test";

import { walk } from "../../analysis/figures/routing_view/keys.js";

const MOST = { tokens: 10, blocks: 4, levels: 2 };
const AT = { selected: 3, until: 3, block: 1, level: 1 };
const press = (key, at = {}, options = {}) => walk({ key, shiftKey: false, ...options }, { ...AT, ...at }, MOST, options.onMap ?? false);

test("left and right walk the tokens and stop at both ends", () => {
  assert.deepEqual(press("ArrowRight"), { token: 4, anchor: 4 });
  assert.deepEqual(press("ArrowLeft", { selected: 0 }), { token: 0, anchor: 0 });
  assert.deepEqual(press("ArrowRight", { selected: 9 }), { token: 9, anchor: 9 });
  assert.deepEqual(press("ArrowRight", { selected: -1, until: -1 }), { token: 0, anchor: 0 });
  assert.deepEqual(press("Home"), { token: 0, anchor: 0 });
  assert.deepEqual(press("End"), { token: 9, anchor: 9 });
});

test("with shift the other end of the selection moves", () => {
  assert.deepEqual(press("ArrowRight", { until: 5 }, { shiftKey: true }), { token: 6, anchor: 3 });
  assert.deepEqual(press("End", {}, { shiftKey: true }), { token: 9, anchor: 3 });
  assert.deepEqual(press("ArrowLeft", { selected: -1, until: -1 }, { shiftKey: true }), { token: 0, anchor: 0 });
});

test("up and down walk the blocks on the map and the levels elsewhere", () => {
  assert.deepEqual(press("ArrowDown", {}, { onMap: true }), { block: 2 });
  assert.deepEqual(press("ArrowUp", { block: -1 }, { onMap: true }), { block: 0 });
  assert.deepEqual(press("ArrowDown", { block: 3 }, { onMap: true }), { block: 3 });
  assert.deepEqual(press("ArrowDown"), { level: 2 });
  assert.deepEqual(press("ArrowDown", { level: 2 }), { level: 2 });
  assert.deepEqual(walk({ key: "ArrowDown" }, AT, { ...MOST, levels: 0 }, false), { level: 1 });
});

test("escape clears, slash searches, other keys do nothing", () => {
  assert.deepEqual(press("Escape"), { block: -1, token: -1, anchor: -1 });
  assert.deepEqual(press("/"), { search: true });
  assert.equal(press("a"), null);
});
