// What the view shows: the trace's arrays and the states of its tokens. No DOM here.

const BINS = 5; // fifths of the values shown

class RoutingData {
  constructor(data) {
    Object.assign(this, data); // text, tokens, blocks, spans, channels, pieces, labels
    const decode = (text, Type) => new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
    this.ids = decode(data.ids, Int32Array);
    this.starts = decode(data.starts, Uint32Array);
    this.ends = decode(data.ends, Uint32Array);
    this.kept = decode(data.kept, Uint8Array);
    this.values = Object.fromEntries(data.channels.map((c) => [c.key, decode(c.values, Float32Array)]));
    this.edgesOf = new Map();
  }

  channel(key) {
    return this.channels.find((c) => c.key === key) ?? this.channels[0];
  }

  // "kept", "dropped", or "absent" if an outer level dropped the token already.
  state(level, token) {
    const at = level * this.tokens + token;
    if (this.kept[at]) return "kept";
    return Number.isNaN(this.values.score[at]) ? "absent" : "dropped";
  }

  processed(block, token) {
    const span = this.blocks[block];
    return span < 0 || this.kept[span * this.tokens + token] === 1;
  }

  // Value of a channel at a row: rows are levels, blocks, or one row for all.
  value(channel, row, token) {
    return this.values[channel.key][(channel.rows === "all" ? 0 : row) * this.tokens + token];
  }

  // Four edges between the fifths of a channel's values: over its row, or over all rows for blocks.
  edges(channel, row) {
    const name = channel.rows === "levels" ? `${channel.key} ${row}` : channel.key;
    if (!this.edgesOf.has(name)) {
      const all = this.values[channel.key];
      const from = channel.rows === "levels" ? row * this.tokens : 0;
      const to = channel.rows === "levels" ? from + this.tokens : all.length;
      const shown = all.slice(from, to).filter((v, i) => !Number.isNaN(v) && (channel.rows !== "levels" || this.kept[from + i]));
      shown.sort();
      this.edgesOf.set(name, shown.length ? [0.2, 0.4, 0.6, 0.8].map((q) => shown[Math.floor(q * (shown.length - 1))]) : []);
    }
    return this.edgesOf.get(name);
  }

  bin(channel, row, token) {
    const value = this.value(channel, row, token);
    if (Number.isNaN(value)) return 0;
    return this.edges(channel, row).filter((edge) => value > edge).length;
  }

  piece(token) {
    return this.pieces[token] ?? this.text.slice(this.starts[token], this.ends[token]);
  }
}
