// The payload, and the states and numbers of its tokens.

import assert from "node:assert/strict";
import { test } from "node:test";

import { RoutingData, halfFloats } from "../../analysis/figures/routing_view/model.js";

// A payload as Python packs it: two levels over six tokens, token 2 is reached by level 1 only.
function payload(fields = {}) {
  const arrays = {
    kept: Uint8Array.of(1, 1, 0, 1, 0, 1, 1, 0, 0, 0, 0, 1),
    reached: Uint8Array.of(1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 1),
    edited: Uint8Array.of(0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    starts: Uint32Array.of(0, 3, 4, 7, 8, 11),
    ends: Uint32Array.of(3, 4, 7, 8, 11, 12),
    score: Float32Array.of(0.5, 2, -1, 0.25, -3, 1, 4, -1, NaN, -2, NaN, 3),
  };
  const types = new Map([[Uint8Array, "u1"], [Uint32Array, "u4"], [Float32Array, "f4"]]);
  const places = {};
  let size = 0;
  for (const [name, values] of Object.entries(arrays)) {
    places[name] = [types.get(values.constructor), size, values.byteLength];
    size += values.byteLength;
  }
  const header = new TextEncoder().encode(JSON.stringify({
    tokens: 6, text: "the cat (dog", blocks: [0, 1, 2, 1, 0], pieces: { 3: "1/2" }, arrays: places,
    channels: [{ key: "score", rows: "levels" }],
    levels: [{ level: 1, parent: 0, skipped: "dropped", words: {} }, { level: 2, parent: 1, skipped: "dropped", words: {} }], ...fields,
  }));
  const bytes = new Uint8Array(4 + header.length + size);
  new DataView(bytes.buffer).setUint32(0, header.length, true);
  bytes.set(header, 4);
  let at = 4 + header.length;
  for (const values of Object.values(arrays)) {
    bytes.set(new Uint8Array(values.buffer), at);
    at += values.byteLength;
  }
  return bytes;
}

test("tokens are kept, dropped or absent, and blocks run on those that their level keeps", () => {
  const data = new RoutingData(payload());
  assert.deepEqual([0, 1, 2, 3, 4, 5].map((token) => data.state(1, token)), ["kept", "kept", "dropped", "kept", "dropped", "kept"]);
  assert.deepEqual([0, 2, 3].map((token) => data.state(2, token)), ["kept", "absent", "dropped"]);
  assert.deepEqual([0, 1, 2, 3, 4].map((block) => data.processed(block, 3)), [true, true, false, true, true]);
  assert.equal(data.isEdited(1, 1), true);
  assert.equal(data.isEdited(2, 1), false);
  assert.equal(data.countReached(2), 4);
});

test("the payload may begin at any byte of its buffer", () => {
  const bytes = payload();
  const shifted = new Uint8Array(bytes.length + 3);
  shifted.set(bytes, 3);
  assert.deepEqual(new RoutingData(shifted.subarray(3)).kept, new RoutingData(bytes).kept);
});

test("fifths are of the kept tokens of the level, and the rank counts higher scores", () => {
  const data = new RoutingData(payload());
  const bins = data.bins(data.channel("score"), 1);
  assert.ok(bins[1] >= bins[5] && bins[5] > bins[0] && bins[0] > bins[3]);
  assert.equal(data.rank(1, 1), 1);
  assert.equal(data.rank(2, 5), 2);
  assert.equal(data.channel("unknown").key, "score");
});

test("a text is found whatever its case and characters, over several tokens", () => {
  const data = new RoutingData(payload());
  assert.deepEqual(data.find("CAT"), [[2, 2]]);
  assert.deepEqual(data.find("e c"), [[0, 2]]);
  assert.deepEqual(data.find("("), [[4, 4]]);
  assert.deepEqual(data.find(""), []);
  assert.deepEqual(data.find("bird"), []);
  assert.equal(data.piece(0), "the");
  assert.equal(data.piece(3), "1/2");
});

test("half floats are read without help of the browser", () => {
  const halves = Uint16Array.of(0x3c00, 0xc000, 0x0001, 0x7bff, 0x7c00, 0xfc00, 0x7e00, 0x0000);
  assert.deepEqual([...halfFloats(halves)], [1, -2, 2 ** -24, 65504, Infinity, -Infinity, NaN, 0].map(Math.fround));
});
