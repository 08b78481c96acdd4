/** How a beam search went: a column for each step, a box for each candidate that it kept. */

import { around, drawn, element, percent, signed } from "./dom.js";
import { arePieces, shownToken } from "./tokens.js";

const BOX = { width: 88, height: 44 };
const GAP = { x: 22, y: 10 };
const HEAD = 26;
const LONGEST_TOKEN = 11;

/**
 * @typedef {object} Candidate
 * @property {number | null} parent
 * @property {string} token
 * @property {number} logprob
 * @property {number} score
 * @property {string | null} finish_reason
 */

/**
 * Show a trace, with the path to one of its hypotheses marked.
 *
 * @param {HTMLElement} place
 * @param {HTMLElement} readout the line that says what is pointed at
 * @param {Candidate[][]} trace
 * @param {number} score of the hypothesis
 * @param {string} language of the target
 */
export function showBeamTree(place, readout, trace, score, language) {
  readout.textContent = "";
  if (!trace.length) {
    place.replaceChildren(element("p", { class: "empty" }, "Nothing was searched."));
    return;
  }
  new BeamTree(place, readout, trace, rankOf(trace, score), language);
}

/**
 * Where among the complete candidates a hypothesis stands: not where it does among the
 * hypotheses, for of those that read the same only the best one is told.
 *
 * @param {Candidate[][]} trace
 * @param {number} score
 * @returns {number}
 */
export function rankOf(trace, score) {
  const off = completeIn(trace).map(([at, place]) => Math.abs(trace[at][place].score - score));
  return off.indexOf(Math.min(...off));
}

/**
 * The complete candidates in the order of the hypotheses: by score, the earlier first.
 *
 * @param {Candidate[][]} trace
 * @returns {number[][]} step and place of each
 */
export function completeIn(trace) {
  /** @type {number[][]} */
  const found = trace.flatMap((step, at) =>
    step.flatMap((one, place) => (one.finish_reason ? [[at, place]] : [])),
  );
  const scoreOf = (one) => trace[one[0]][one[1]].score;
  return found.sort((one, other) => scoreOf(other) - scoreOf(one)); // keeps the order of equals
}

/**
 * The places of a candidate and of all that it continues, the first step's first.
 *
 * @param {Candidate[][]} trace
 * @param {number} at its step
 * @param {number} place
 * @returns {number[]}
 */
export function pathTo(trace, at, place) {
  const path = [];
  for (let step = at, next = place; step >= 0; step -= 1) {
    path.unshift(next);
    next = trace[step][next].parent;
  }
  return path;
}

class BeamTree {
  constructor(place, readout, trace, rank, language) {
    this.trace = trace;
    this.readout = readout;
    const pieces = arePieces(trace.flatMap((step) => step.map(({ token }) => token)));
    this.names = trace.map((step) => step.map(({ token }) => shownToken(token, pieces)));
    this.lines = drawn("svg", { "aria-hidden": "true" });
    this.boxes = trace.map((step, at) => step.map((one, index) => this.makeBox(one, at, index)));
    const rows = Math.max(...trace.map((step) => step.length));
    const node = element(
      "div",
      {
        class: "beam-tree",
        role: "group",
        "aria-label": "Steps of the search: the arrow keys walk through it",
        lang: language,
        "--width": `${trace.length * (BOX.width + GAP.x) - GAP.x}px`,
        "--height": `${HEAD + rows * (BOX.height + GAP.y)}px`,
      },
      this.lines,
      ...trace.map((_, at) => stepHead(at)),
      ...this.boxes.flat(),
    );
    node.addEventListener("pointerover", (event) => this.point(around(event, ".candidate")));
    node.addEventListener("focusin", (event) => this.point(around(event, ".candidate")));
    node.addEventListener("pointerleave", () => this.point(null));
    node.addEventListener("focusout", () => this.point(null));
    node.addEventListener("keydown", (event) => this.onKey(event));
    place.replaceChildren(node);
    this.drawLines(rank);
    this.boxes[0][0].tabIndex = 0;
  }

  makeBox(candidate, at, place) {
    const { x, y } = corner(at, place);
    const name = this.names[at][place];
    const short = name.length > LONGEST_TOKEN ? `${name.slice(0, LONGEST_TOKEN - 1)}…` : name;
    return element(
      "button",
      {
        type: "button",
        class: candidate.finish_reason ? "candidate complete" : "candidate",
        tabindex: -1,
        "--x": `${x}px`,
        "--y": `${y}px`,
        "data-at": at,
        "data-place": place,
      },
      element("span", {}, short),
      element("small", {}, signed(candidate.score, 2)),
    );
  }

  drawLines(rank) {
    const last = completeIn(this.trace)[rank];
    const chosen = last ? pathTo(this.trace, last[0], last[1]) : [];
    /** @type {SVGElement[][]} */
    this.links = this.trace.map((step, at) =>
      step.map(({ parent }, place) => {
        const isChosen = chosen[at] === place;
        this.boxes[at][place].classList.toggle("chosen", isChosen);
        return drawn("path", { class: isChosen ? "chosen" : "", d: at ? curve(at, parent, place) : "" });
      }),
    );
    // The chosen path comes last, and so lies on top.
    const links = this.links.flat();
    links.sort((one, other) => Number(isOn(one)) - Number(isOn(other)));
    this.lines.replaceChildren(...links);
  }

  onKey(event) {
    const box = around(event, ".candidate");
    const [at, place] = [Number(box?.dataset.at), Number(box?.dataset.place)];
    const children = (this.trace[at + 1] ?? []).findIndex(({ parent }) => parent === place);
    const next = {
      ArrowUp: [at, place - 1],
      ArrowDown: [at, place + 1],
      ArrowLeft: [at - 1, this.trace[at]?.[place].parent],
      ArrowRight: [at + 1, children],
    }[event.key];
    if (!box || !next) return;
    event.preventDefault();
    const target = this.boxes[next[0]]?.[next[1]];
    if (!target) return;
    box.tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  }

  /** Light up the way to a candidate, and say what it is. */
  point(box) {
    for (const node of [...this.boxes.flat(), ...this.links.flat()]) node.classList.remove("lit");
    this.readout.textContent = "";
    if (!box) return;
    const [at, place] = [Number(box.dataset.at), Number(box.dataset.place)];
    const path = pathTo(this.trace, at, place);
    for (const [step, index] of path.entries()) {
      this.boxes[step][index].classList.add("lit");
      this.links[step][index].classList.add("lit");
    }
    const { logprob, score, finish_reason: reason } = this.trace[at][place];
    const words = path.map((index, step) => this.names[step][index]).join(" ");
    const state = { end: ", complete", length: ", cut at the limit" }[reason] ?? "";
    this.readout.textContent =
      `Step ${at + 1}, place ${place + 1}${state}: “${words}”; ` +
      `its last token had the probability ${percent(Math.exp(logprob))}, the score is ${signed(score, 3)}`;
  }
}

function stepHead(at) {
  const { x } = corner(at, 0);
  return element("span", { class: "step-head", "--x": `${x}px`, "aria-hidden": "true" }, `${at + 1}`);
}

function corner(at, place) {
  return { x: at * (BOX.width + GAP.x), y: HEAD + place * (BOX.height + GAP.y) };
}

function curve(at, parent, place) {
  const [from, to] = [corner(at - 1, parent), corner(at, place)];
  const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
  const [x2, y2] = [to.x, to.y + BOX.height / 2];
  const middle = (x1 + x2) / 2;
  return `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
}

function isOn(link) {
  return link.classList.contains("chosen");
}
