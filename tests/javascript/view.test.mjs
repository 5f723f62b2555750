// The line of numbers about one token.

import assert from "node:assert/strict";
import { test } from "node:test";

import { RoutingData } from "../../analysis/figures/routing_view/model.js";
import { RoutingView } from "../../analysis/figures/routing_view/view.js";

const labels = { tokenNumber: "token", keptState: "kept", droppedState: "dropped", threshold: "threshold", rank: "rank {rank} of {n}", score: "score", weight: "weight", added: "bypass contribution" };

// What is said of the only token, which Level 1 keeps, of a trace with some channels.
function described(channels) {
  const token = { words: "", append: (...parts) => parts.forEach((part) => (token.words += part.textContent ?? part)), replaceChildren: () => (token.words = "") };
  const data = Object.assign(Object.create(RoutingData.prototype), {
    labels, tokens: 1, text: "a", pieces: {}, ids: [7], starts: [0], ends: [1], kept: [1], reached: Uint8Array.of(1), edited: [0],
    levels: [{ level: 1, name: "Level 1", threshold: 0, skipped: "dropped", words: {} }],
    channels: Object.keys(channels).map((key) => ({ key, rows: "levels", help: "" })),
    ...Object.fromEntries(Object.entries(channels).map(([key, value]) => [key, Float32Array.of(value)])),
  });
  globalThis.document = { createElement: () => ({}) };
  Object.assign(Object.create(RoutingView.prototype), { data, token, text: {} }).describe(0);
  return token.words;
}

test("the numbers of a token are said as far as they were recorded, and none stands for another", () => {
  const line = 'token 0 "a" (id 7)\nLevel 1: kept, score 4.750 (threshold 0, rank 1 of 1)';
  assert.equal(described({ score: 4.75, kept: 1 }), line, "as a corpus records them");
  assert.equal(described({ score: 4.75, weight: 0.5, bypass: 0.25, kept: 1 }), `${line}, weight 0.500, bypass contribution 25.0%`);
  assert.equal(described({ score: 4.75, weight: 0.5, bypass: NaN, kept: 1 }), `${line}, weight 0.500`);
});
