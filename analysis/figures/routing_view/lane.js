// One number per token along the prompt, below the map and with its window: a dot where the token is kept, a cross
// where it is dropped, a dash where it is merged, an open square where it takes the light branch only.

import { BLUE, GREEN, LEFT, ORANGE, columnAt, drawColumns, place } from "./canvas.js";
import { short, squeeze } from "./geometry.js";

const LANE = 96; // pixels

export class LaneView {
  constructor(frame) {
    this.frame = frame;
    this.points = frame.querySelector(".points");
    this.cursor = frame.querySelector(".cursor");
  }

  draw(data, level, channel, window) {
    this.window = window;
    const width = Math.max(this.frame.clientWidth - LEFT - 2, 50);
    this.frame.style.height = `${LANE}px`;
    const context = place(this.points, 0, 0, width + LEFT, LANE);
    place(this.cursor, LEFT, 0, width, LANE);
    const { from, to } = window;
    const values = data.row(channel, level);
    const threshold = data.levels.length && channel.key === "score" ? data.levels[level - 1].threshold : null;
    // kept and dropped tokens that have a value; without levels, all do as kept ones do
    const groups = { kept: [], dropped: [], merged: [], light: [] };
    let [low, high] = threshold === null ? [Infinity, -Infinity] : [threshold, threshold];
    for (let token = from; token < to; token++) {
      const state = data.levels.length ? data.state(level, token) : "kept";
      if (Number.isNaN(values[token]) || (state === "absent" && channel.rows === "levels")) continue;
      groups[state === "absent" ? data.skipped(level, token) : state].push(token);
      low = Math.min(low, values[token]);
      high = Math.max(high, values[token]);
    }
    if (!(high >= low)) return;
    const size = (to - from) * 4 > width ? 2 : 4;
    const squeezed = squeeze(values.slice(from, to));
    const y = (value) => 6 + (LANE - 12) * (high > low ? (squeezed(high) - squeezed(value)) / (squeezed(high) - squeezed(low)) : 0.5);
    const x = (token) => LEFT + ((token + 0.5 - from) * width) / (to - from);
    context.textAlign = "right";
    context.fillText(high.toFixed(2), LEFT - 4, 10);
    if (high > low) context.fillText(low.toFixed(2), LEFT - 4, LANE - 3);
    if (threshold !== null) {
      const at = y(threshold);
      context.setLineDash([5, 4]);
      context.beginPath();
      context.moveTo(LEFT, at);
      context.lineTo(LEFT + width, at);
      context.stroke();
      context.setLineDash([]);
      if (at > 22 && at < LANE - 16) context.fillText(short(threshold), LEFT - 4, at + 4);
    }
    context.fillStyle = `rgb(${BLUE})`;
    for (const token of groups.kept) context.fillRect(x(token) - size / 2, y(values[token]) - size / 2, size, size);
    context.strokeStyle = `rgb(${BLUE})`;
    for (const token of groups.light) context.strokeRect(x(token) - size / 2, y(values[token]) - size / 2, size, size);
    context.fillStyle = `rgb(${GREEN})`;
    for (const token of groups.merged) context.fillRect(x(token) - size, y(values[token]) - 1, 2 * size, 2);
    context.strokeStyle = `rgb(${ORANGE})`;
    context.beginPath();
    for (const token of groups.dropped) {
      const [left, top] = [x(token), y(values[token])];
      context.moveTo(left - size / 2, top - size / 2);
      context.lineTo(left + size / 2, top + size / 2);
      context.moveTo(left - size / 2, top + size / 2);
      context.lineTo(left + size / 2, top - size / 2);
    }
    context.stroke();
  }

  drawCursor(selected, hovered, tie = null) {
    if (this.window) drawColumns(this.cursor, this.window, selected, hovered, tie);
  }

  tokenAt(event) {
    return columnAt(event, this.cursor, this.window);
  }
}
