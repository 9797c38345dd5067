// Charts of milliseconds against tokens in the cache, as SVG: whole tokens, what depth adds to them, attention by itself.

export const escape = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
export const COLORS = ["#0b6e4f", "#3aa17e", "#b3541e", "#d98f4e", "#4a5899", "#8a93c7", "#7a4069", "#b98aa9"];

/** Lines against depth: `at` gives a value's part of the scale, `ticks` the values that are named. A point is [depth, middle, all]. */
function chart(series, depths, { at, ticks, label }) {
  const [width, height, left, bottom, top, right] = [760, 360, 64, 44, 16, 210];
  const deepest = Math.max(1, ...depths);
  const x = (depth) => left + (depth / deepest) * (width - left - right);
  const y = (ms) => top + (1 - at(ms)) * (height - top - bottom);
  const parts = [];
  for (const tick of ticks) {
    parts.push(`<line class="grid" x1="${left}" x2="${width - right}" y1="${y(tick)}" y2="${y(tick)}"/>`);
    parts.push(`<text x="${left - 8}" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`);
  }
  for (const depth of depths) parts.push(`<text x="${x(depth)}" y="${height - bottom + 18}" text-anchor="middle">${depth}</text>`);
  parts.push(`<text x="${(left + width - right) / 2}" y="${height - 6}" text-anchor="middle">tokens in the cache</text>`);
  parts.push(`<text transform="translate(14 ${height / 2}) rotate(-90)" text-anchor="middle">ms per token</text>`);
  // Labels at the right end keep apart from each other.
  const ends = series.map(({ points }, index) => ({ index, y: y(points.at(-1)[1]) + 4 })).sort((a, b) => a.y - b.y);
  for (let next = 1; next < ends.length; next++) ends[next].y = Math.max(ends[next].y, ends[next - 1].y + 15);
  for (const { index, y: end } of ends) {
    const { label: name, color, points } = series[index];
    parts.push(`<polyline fill="none" stroke="${color}" stroke-width="2" points="${points.map(([depth, ms]) => `${x(depth)},${y(ms)}`).join(" ")}"/>`);
    for (const [depth, , all] of points) for (const ms of all) parts.push(`<circle cx="${x(depth)}" cy="${y(ms)}" r="2.5" fill="${color}"/>`);
    parts.push(`<text x="${x(points.at(-1)[0]) + 10}" y="${end}" fill="${color}">${escape(name)}</text>`);
  }
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(label)}">${parts.join("")}</svg>`;
}

/** From a power of ten to a power of ten: engines differ by orders of magnitude. */
export function logarithmic(series, depths, label) {
  const times = series.flatMap(({ points }) => points.flatMap(([, , all]) => all));
  const [low, high] = [Math.floor(Math.log10(Math.min(...times))), Math.ceil(Math.log10(Math.max(...times)))];
  const ticks = Array.from({ length: high - low + 1 }, (_, step) => Number((10 ** (low + step)).toPrecision(1)));
  return chart(series, depths, { at: (ms) => (Math.log10(ms) - low) / Math.max(high - low, 1), ticks, label });
}

/** In steps of 1, 2 or 5 times a power of ten, from 0 or from what lies below it: noise may make a deeper cache the quicker one. */
export function linear(series, depths, label) {
  const values = series.flatMap(({ points }) => points.map(([, ms]) => ms));
  const [least, most] = [Math.min(...values, 0), Math.max(...values, 1e-3)];
  const power = 10 ** Math.floor(Math.log10((most - least) / 4));
  const step = power * [1, 2, 5, 10].find((times) => times * power >= (most - least) / 4);
  const [low, high] = [Math.floor(least / step), Math.ceil(most / step)];
  const ticks = Array.from({ length: high - low + 1 }, (_, tick) => Number(((low + tick) * step).toPrecision(3)));
  return chart(series, depths, { at: (ms) => (ms / step - low) / (high - low), ticks, label });
}

/** What each depth adds to a token: the medians, less the one at the first depth. */
export function added(series) {
  return series.map(({ points, ...rest }) => ({ ...rest, points: points.map(([depth, ms]) => [depth, ms - points[0][1], [ms - points[0][1]]]) }));
}
