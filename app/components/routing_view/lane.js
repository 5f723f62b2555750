// One number per token along the prompt, below the map and with its window: a dot where the token is kept, a cross
// where it is dropped.

const LANE = 96; // pixels

class LaneView {
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
    let [low, high] = channel.key === "score" ? [0, 0] : [Infinity, -Infinity];
    for (let token = from; token < to; token++) {
      if (values[token] < low) low = values[token];
      if (values[token] > high) high = values[token];
    }
    if (!(high >= low)) return;
    const size = (to - from) * 4 > width ? 2 : 4;
    const squeeze = this.scale(values, from, to);
    const y = (value) => 6 + (LANE - 12) * (high > low ? (squeeze(high) - squeeze(value)) / (squeeze(high) - squeeze(low)) : 0.5);
    const x = (token) => LEFT + ((token + 0.5 - from) * width) / (to - from);
    context.textAlign = "right";
    context.fillText(high.toFixed(2), LEFT - 4, 10);
    if (high > low) context.fillText(low.toFixed(2), LEFT - 4, LANE - 3);
    if (channel.key === "score") {
      context.setLineDash([5, 4]);
      context.beginPath();
      context.moveTo(LEFT, y(0));
      context.lineTo(LEFT + width, y(0));
      context.stroke();
      context.setLineDash([]);
      if (y(0) > 22 && y(0) < LANE - 16) context.fillText("0", LEFT - 4, y(0) + 4);
    }
    const dense = !data.spans.length;
    context.fillStyle = `rgb(${BLUE})`;
    for (let token = from; token < to; token++) {
      if (dense || data.state(level, token) === "kept") context.fillRect(x(token) - size / 2, y(values[token]) - size / 2, size, size);
    }
    context.fillStyle = context.strokeStyle = `rgb(${ORANGE})`;
    context.beginPath();
    for (let token = from; token < to; token++) {
      if (dense || data.state(level, token) === "kept" || Number.isNaN(values[token])) continue;
      const [left, top] = [x(token), y(values[token])];
      context.moveTo(left - size / 2, top - size / 2);
      context.lineTo(left + size / 2, top + size / 2);
      context.moveTo(left - size / 2, top + size / 2);
      context.lineTo(left + size / 2, top - size / 2);
    }
    context.stroke();
  }

  // Linear up to the typical size of a value, logarithmic beyond it: a few large scores would flatten all others.
  scale(values, from, to) {
    const sizes = values.slice(from, to).filter((v) => v).map(Math.abs).sort();
    const typical = sizes.find((_, i) => i >= sizes.length / 2) || 1;
    return (value) => Math.asinh(value / typical);
  }

  drawCursor(selected, hovered) {
    if (this.window) drawColumns(this.cursor, this.window, selected, hovered);
  }

  tokenAt(event) {
    return columnAt(event, this.cursor, this.window);
  }
}
