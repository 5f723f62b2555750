// What the view shows: the trace's arrays and the states of its tokens. No DOM here.

export const BINS = 5; // fifths of the values shown
export const LOOKS = { processed: 0, unchanged: 1, merged: 2, light: 3 };
const SAMPLE = 20000; // values that the edges between the fifths are taken from

export class RoutingData {
  // `bytes`: length of the header (uint32), header (JSON), arrays at the offsets that the header gives.
  constructor(bytes) {
    const start = 4 + new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    Object.assign(this, JSON.parse(new TextDecoder().decode(bytes.subarray(4, start)))); // text, tokens, blocks, levels, …
    for (const [name, [type, offset, size]] of Object.entries(this.arrays)) {
      const buffer = bytes.slice(start + offset, start + offset + size).buffer;
      this[name] = type === "f2" ? halfFloats(new Uint16Array(buffer)) : new { u1: Uint8Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array }[type](buffer);
    }
    this.edgesOf = new Map();
    this.binsOf = new Map();
    this.looksOf = new Map();
  }

  // A label, in the words of a level's router.
  word(key, level) {
    return this.levels[level - 1]?.words[key] ?? this.labels[key];
  }

  // What a choice of colours means; the first channel where there is none of that key.
  channel(key) {
    return this.channels.find((c) => c.key === key) ?? this.channels[0];
  }

  // "kept"; "dropped", "merged" into another token, or "light" for the light branch only; or "absent" if the token did
  // not reach the level.
  state(level, token) {
    const at = (level - 1) * this.tokens + token;
    if (this.kept[at]) return "kept";
    return this.reached[at] ? this.levels[level - 1].skipped : "absent";
  }

  // What became of a token that a level does not process: its state there, or at the outer level that it did not pass.
  skipped(level, token) {
    let state = this.state(level, token);
    while (state === "absent" && (level = this.levels[level - 1].parent)) state = this.state(level, token);
    return state;
  }

  // The token whose group a merging level put this one into, and the one whose result it got; -1 if there is none.
  ties(level, token) {
    const at = (level - 1) * this.tokens + token;
    return this.mergedInto ? { into: this.mergedInto[at], from: this.updatedFrom[at] } : { into: -1, from: -1 };
  }

  // First and last token of the group that a token of a merging level belongs to, where that is complete; else null.
  group(level, token) {
    const { into } = level > 0 && token >= 0 ? this.ties(level, token) : { into: -1 };
    if (into < 0) return null;
    let first = into;
    while (first > 0 && this.state(level, first - 1) !== "kept") first--; // tokens that did not reach it lie between
    while (this.ties(level, first).into !== into) first++;
    return [first, into];
  }

  // Whether an edit named the token at a level.
  isEdited(level, token) {
    return this.edited[(level - 1) * this.tokens + token] === 1;
  }

  processed(block, token) {
    const level = this.blocks[block];
    return level === 0 || this.kept[(level - 1) * this.tokens + token] === 1;
  }

  // (tokens) how a block's cells look, one of `LOOKS`.
  looks(block) {
    if (!this.looksOf.has(block)) {
      const level = this.blocks[block];
      const sites = this.levels.filter((each) => each.block === block);
      this.looksOf.set(block, Uint8Array.from({ length: this.tokens }, (_, token) => {
        if (!this.processed(block, token)) return this.skipped(level, token) === "merged" ? LOOKS.merged : LOOKS.unchanged;
        const light = sites.length && sites.every((site) => this.state(site.level, token) !== "kept");
        return light ? LOOKS.light : LOOKS.processed;
      }));
    }
    return this.looksOf.get(block);
  }

  // Row of a channel, by number of the level (from 1) or of the block (from 0); or its only row.
  row(channel, index) {
    const from = channel.rows === "all" ? 0 : (channel.rows === "levels" ? index - 1 : index) * this.tokens;
    return this[channel.key].subarray(from, from + this.tokens);
  }

  value(channel, index, token) {
    return this.row(channel, index)[token];
  }

  // A number of a token at a level; NaN where the trace has no channel of that key.
  at(key, level, token) {
    const channel = this.channels.find((c) => c.key === key);
    return channel ? this.value(channel, level, token) : NaN;
  }

  // (tokens) which fifth each value of a row is in, the highest where they are equal; 0 where there is none.
  bins(channel, index) {
    const name = `${channel.key} ${channel.rows === "all" ? 0 : index}`;
    if (!this.binsOf.has(name)) {
      const [a, b, c, d] = this.edges(channel, index);
      this.binsOf.set(name, Uint8Array.from(this.row(channel, index), (v) => (v >= a) + (v >= b) + (v >= c) + (v >= d)));
    }
    return this.binsOf.get(name);
  }

  // Four edges between the fifths of a channel's values: over the kept tokens of its row, over all rows for blocks.
  edges(channel, index) {
    const name = channel.rows === "levels" ? `${channel.key} ${index}` : channel.key;
    if (!this.edgesOf.has(name)) {
      const levels = channel.rows === "levels";
      const values = levels ? this.row(channel, index) : this[channel.key];
      const step = Math.ceil(values.length / SAMPLE);
      const shown = values.filter((v, i) => i % step === 0 && !Number.isNaN(v) && (!levels || this.kept[(index - 1) * this.tokens + i])).sort();
      this.edgesOf.set(name, [0.2, 0.4, 0.6, 0.8].map((q) => shown[Math.floor(q * (shown.length - 1))] ?? Infinity));
    }
    return this.edgesOf.get(name);
  }

  // Place of a token's score among those that reached a level whose router scores, the highest first.
  rank(level, token) {
    const scores = this.row(this.channel("score"), level);
    return 1 + scores.reduce((above, score) => above + (score > scores[token]), 0);
  }

  countReached(level) {
    return this.reached.subarray((level - 1) * this.tokens, level * this.tokens).reduce((count, one) => count + one, 0);
  }

  piece(token) {
    return this.pieces[token] ?? this.text.slice(this.starts[token], this.ends[token]);
  }

  // The first token that ends after a character, by bisection.
  tokenAfter(offset, ends = this.ends) {
    let low = 0;
    let high = this.tokens - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ends[middle] > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // Where a text occurs: [first token, last token], upper and lower case alike; it may run over several tokens.
  find(query) {
    if (!query) return [];
    const pattern = new RegExp(query.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), "gi");
    return [...this.text.matchAll(pattern)].map((match) => [this.tokenAfter(match.index), this.tokenAfter(match.index + match[0].length - 1)]);
  }
}

export function halfFloats(halves) {
  if (typeof Float16Array === "function") return Float32Array.from(new Float16Array(halves.buffer));
  return Float32Array.from(halves, (bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
  });
}
