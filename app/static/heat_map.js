/** Attention as a grid of source against target tokens, for the pointer and the arrow keys. */

import { element, percent } from "./dom.js";
import { arePieces, shownToken } from "./tokens.js";

const MOST_NAMED = 3;

/**
 * @typedef {{source_tokens: string[], target_tokens: string[], weights: number[][]}} Alignment
 */

/**
 * Show an alignment, or say that there is none.
 *
 * @param {HTMLElement} place
 * @param {HTMLElement} readout the line that says what is pointed at
 * @param {Alignment | undefined} alignment
 * @param {{source: string, target: string}} languages
 */
export function showHeatMap(place, readout, alignment, languages) {
  readout.textContent = "";
  if (!alignment || !alignment.target_tokens.length) {
    const reason = alignment
      ? "Nothing was written, so there is nothing to see."
      : "No attention to show: the model has none, or the text is too long.";
    place.replaceChildren(element("p", { class: "empty" }, reason));
    return;
  }
  new HeatMap(place, readout, alignment, languages);
}

class HeatMap {
  constructor(place, readout, alignment, languages) {
    this.readout = readout;
    this.weights = alignment.weights;
    this.source = shown(alignment.source_tokens);
    this.target = shown(alignment.target_tokens);
    /** The first row and column are the tokens. @type {HTMLElement[][]} */
    this.cells = this.makeCells(languages);
    const table = element(
      "table",
      { class: "heat-map", role: "grid", "aria-label": "Attention: target by source tokens" },
      ...this.cells.map((row) => element("tr", {}, ...row)),
    );
    table.addEventListener("pointerover", (event) => this.point(event.target));
    table.addEventListener("focusin", (event) => this.point(event.target));
    table.addEventListener("pointerleave", () => this.clear());
    table.addEventListener("focusout", () => this.clear());
    table.addEventListener("keydown", (event) => this.onKey(event));
    this.cells[1][0].tabIndex = 0;
    place.replaceChildren(table);
  }

  makeCells({ source, target }) {
    const corner = element("td", { class: "corner" });
    const head = this.source.map((token) =>
      element("th", { scope: "col", tabindex: -1, lang: source }, element("span", {}, token)),
    );
    const rows = this.target.map((token, row) => [
      element("th", { scope: "row", tabindex: -1, lang: target }, token),
      ...this.weights[row].map((weight) => {
        const number = element("span", { class: "hidden" }, percent(weight));
        return element("td", { tabindex: -1, "--weight": weight.toFixed(4) }, number);
      }),
    ]);
    return [[corner, ...head], ...rows];
  }

  place(target) {
    const cell = target.closest("td, th");
    const row = this.cells.findIndex((cells) => cells.includes(cell));
    return row < 0 ? [0, 0] : [row, this.cells[row].indexOf(cell)];
  }

  onKey(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in step)) return;
    event.preventDefault();
    const [down, right] = step[event.key];
    const [row, column] = this.place(event.target);
    const next = this.cells[row + down]?.[column + right];
    if (!next || next.classList.contains("corner")) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  clear() {
    this.readout.textContent = "";
    for (const cell of this.cells.flat()) {
      cell.classList.remove("lit", "weighed");
    }
  }

  /** Light up what belongs to a cell: a weight, a target token or a source token. */
  point(target) {
    this.clear();
    const [row, column] = this.place(target);
    if (row + column === 0) return;
    if (row) this.cells[row][0].classList.add("lit");
    if (column) this.cells[0][column].classList.add("lit");
    if (row && column) {
      const weight = percent(this.weights[row - 1][column - 1]);
      this.cells[row][column].classList.add("lit");
      this.readout.textContent = `${weight} of “${this.target[row - 1]}” looks at “${this.source[column - 1]}”`;
    } else if (row) {
      this.weigh(this.cells[0].slice(1), this.weights[row - 1]);
      this.readout.textContent = `“${this.target[row - 1]}” looks at ${mostly(this.source, this.weights[row - 1])}`;
    } else {
      const weights = this.weights.map((weightsOf) => weightsOf[column - 1]);
      this.weigh(this.cells.slice(1).map((cells) => cells[0]), weights);
      this.readout.textContent = `“${this.source[column - 1]}” is looked at by ${mostly(this.target, weights)}`;
    }
  }

  /** Tint tokens by how much they have to do with the one that is pointed at. */
  weigh(cells, weights) {
    for (const [index, cell] of cells.entries()) {
      cell.classList.add("weighed");
      cell.style.setProperty("--weight", weights[index].toFixed(4));
    }
  }
}

function shown(tokens) {
  const pieces = arePieces(tokens);
  return tokens.map((token) => shownToken(token, pieces));
}

function mostly(tokens, weights) {
  const order = weights.map((_, index) => index).sort((a, b) => weights[b] - weights[a]);
  return order
    .slice(0, MOST_NAMED)
    .map((index) => `“${tokens[index]}” ${percent(weights[index])}`)
    .join(", ");
}
