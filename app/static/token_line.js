/** A text of tokens of which one can be pointed at, or walked to with the arrow keys. */

import { around, element } from "./dom.js";

/**
 * The line is one stop of the Tab key; the arrow keys, Home and End go from token to token.
 */
export class TokenLine {
  /**
   * @param {string} label what the line is, for those who do not see it
   * @param {(token: HTMLElement | null) => void} onPoint told the token pointed at, or none
   */
  constructor(label, onPoint) {
    this.onPoint = onPoint;
    /** @type {HTMLElement[]} */
    this.tokens = [];
    this.at = -1;
    this.node = element("div", {
      class: "token-line",
      role: "group",
      tabindex: 0,
      "aria-label": `${label}: the arrow keys go from token to token`,
    });
    this.node.addEventListener("pointerover", (event) => {
      this.point(this.tokens.indexOf(around(event, ".token")));
    });
    this.node.addEventListener("pointerleave", () => this.point(-1));
    this.node.addEventListener("blur", () => this.point(-1));
    this.node.addEventListener("keydown", (event) => this.onKey(event));
  }

  /**
   * @param {HTMLElement} token
   * @param {...(Node | string)} between what stands behind it
   */
  append(token, ...between) {
    token.classList.add("token");
    this.tokens.push(token);
    this.node.append(token, ...between);
  }

  onKey(event) {
    const last = this.tokens.length - 1;
    const next = {
      ArrowRight: Math.min(this.at + 1, last),
      ArrowDown: Math.min(this.at + 1, last),
      ArrowLeft: Math.max(this.at - 1, 0),
      ArrowUp: Math.max(this.at - 1, 0),
      Home: 0,
      End: last,
    }[event.key];
    if (next === undefined || last < 0) return;
    event.preventDefault();
    this.point(next);
    this.tokens[next].scrollIntoView({ block: "nearest" });
  }

  point(index) {
    if (index === this.at) return;
    this.tokens[this.at]?.classList.remove("current");
    this.at = index;
    this.tokens[index]?.classList.add("current");
    this.onPoint(this.tokens[index] ?? null);
  }
}
