// Where the words of an orientation stand.

import assert from "node:assert/strict";
import { test } from "node:test";

import { place, selector } from "../../app/components/orientation/steps.js";

const screen = { width: 400, height: 600 };
const bubble = { width: 300, height: 100 };

test("words stand below what they are about, above it without room, and always on the screen", () => {
  assert.deepEqual(place({ left: 20, top: 50, bottom: 80 }, bubble, screen), { left: 20, top: 92 });
  assert.deepEqual(place({ left: 350, top: 500, bottom: 560 }, bubble, screen), { left: 88, top: 388 });
  assert.deepEqual(place({ left: -50, top: -900, bottom: 900 }, bubble, screen), { left: 12, top: 488 });
  assert.deepEqual(place(null, bubble, screen), { left: 50, top: 250 });
});

test("keys become the names that Streamlit gives", () => {
  assert.equal(selector({ targets: ["watch step", "watched zh"], part: "" }), ".st-key-watch-step, .st-key-watched-zh");
  assert.equal(selector({ targets: ["debug"], part: "tabs" }), '.st-key-debug [role="tablist"]');
});
