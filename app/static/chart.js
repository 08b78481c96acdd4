/** A small line chart of the last minutes, in SVG. */

import { drawn, element } from "./dom.js";

const WIDTH = 240;
const HEIGHT = 56;

/**
 * @typedef {object} Series
 * @property {string} name
 * @property {(number | null)[]} values the oldest first; null: nothing was measured
 */

/** One figure as it is now, and how it came there. */
export class Chart {
  /**
   * @param {string} title
   * @param {string} hint what exactly is measured
   * @param {(value: number) => string} format
   */
  constructor(title, hint, format) {
    this.title = title;
    this.format = format;
    this.value = element("p", { class: "chart-value" }, "–");
    this.range = element("p", { class: "chart-range" });
    this.drawing = drawn("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      preserveAspectRatio: "none",
      role: "img",
    });
    this.node = element(
      "section",
      { class: "card chart" },
      element("h2", {}, title),
      this.value,
      this.drawing,
      this.range,
      element("p", { class: "hint" }, hint),
    );
  }

  /**
   * @param {Series[]} series the first one is filled
   * @param {number} capacity values that the width has room for
   * @param {string} now the present figure in words
   */
  draw(series, capacity, now) {
    const values = series.flatMap((one) => one.values.filter((value) => value !== null));
    const most = Math.max(...values, 0);
    this.value.textContent = now;
    this.range.textContent = most ? `0 to ${this.format(most)}` : "nothing in this time";
    this.drawing.setAttribute("aria-label", `${this.title}: now ${now}, at most ${this.format(most)}`);
    this.drawing.replaceChildren(
      ...series.flatMap((one, index) =>
        runsOf(one.values, capacity).flatMap((run) => this.drawRun(run, index, most || 1, capacity)),
      ),
    );
  }

  drawRun(run, index, most, capacity) {
    const points = run.map(([at, value]) => {
      const x = (at / (capacity - 1)) * WIDTH;
      return `${x.toFixed(1)},${(HEIGHT - 2 - (value / most) * (HEIGHT - 6)).toFixed(1)}`;
    });
    // A single point would be a line of no length.
    if (points.length === 1) points.unshift(points[0].replace(/^[\d.]+/, (x) => `${Number(x) - 1.5}`));
    const line = drawn("polyline", { class: `line-${index}`, points: points.join(" ") });
    if (index > 0) return [line];
    const [first, last] = [points[0], points.at(-1)].map((point) => point.split(",")[0]);
    const area = `${first},${HEIGHT} ${points.join(" ")} ${last},${HEIGHT}`;
    return [drawn("polygon", { class: "area", points: area }), line];
  }
}

/** Stretches of neighbouring values, each with its place: the newest stands at the right. */
function runsOf(values, capacity) {
  const runs = [];
  const first = capacity - values.length;
  for (const [at, value] of values.entries()) {
    if (value === null) continue;
    if (at && values[at - 1] !== null) runs.at(-1).push([first + at, value]);
    else runs.push([[first + at, value]]);
  }
  return runs;
}
