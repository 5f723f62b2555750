// The address that the page around a frame is told.

import assert from "node:assert/strict";
import { test } from "node:test";

import { address } from "../../app/components/frame_link/view.js";

test("the page becomes a field beside those of the link", () => {
  assert.deepEqual(address("?v=2&prompt=a%20b", "#c", "debug"), { queryString: "v=2&prompt=a+b&page=debug", hash: "#c" });
});

test("the first page needs no field", () => {
  assert.deepEqual(address("?v=2&page=debug", "", ""), { queryString: "v=2", hash: "" });
});

test("a prompt stays what it was, whatever its characters mean in an address", () => {
  const prompt = "a&page=watch#b?c=d%20 浮\n";
  const { queryString } = address(`?${new URLSearchParams({ prompt })}`, "", "debug");
  const read = new URLSearchParams(queryString);
  assert.equal(read.get("prompt"), prompt);
  assert.deepEqual(read.getAll("page"), ["debug"]);
});
