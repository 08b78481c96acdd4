/** Makes elements, without any markup in strings: text stays text. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes and children.
 *
 * @param {string} tag
 * @param {Record<string, string | number | boolean>} [attributes] `true` sets an empty
 *   attribute, `false` none; names that begin with `--` are CSS variables.
 * @param {...(Node | string)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * The same for a part of a drawing.
 *
 * @param {string} tag
 * @param {Record<string, string | number | boolean>} [attributes]
 * @param {...(Node | string)} children
 * @returns {SVGElement}
 */
export function drawn(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    // A style attribute would be refused by the page's security policy; a property is not.
    if (name.startsWith("--")) node.style.setProperty(name, String(value));
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false) node.setAttribute(name, String(value));
  }
  node.append(...children);
  return node;
}

/**
 * The element with this id, which the page has.
 *
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no element ${id}`);
  return found;
}

/**
 * The element around an event's target that fits a selector.
 *
 * @param {Event} event
 * @param {string} selector
 * @returns {HTMLElement | null}
 */
export function around(event, selector) {
  return event.target instanceof Element ? event.target.closest(selector) : null;
}

/**
 * The number in a field, or undefined where there is none: the server then takes its default.
 *
 * @param {HTMLInputElement} input
 * @returns {number | undefined}
 */
export function numberIn(input) {
  return Number.isNaN(input.valueAsNumber) ? undefined : input.valueAsNumber;
}

/**
 * A part of 1 in percent, with as many digits as it needs.
 *
 * @param {number} part
 * @returns {string}
 */
export function percent(part) {
  const value = part * 100;
  if (value >= 99.95) return "100 %";
  if (value >= 10) return `${value.toFixed(0)} %`;
  if (value >= 0.1) return `${value.toFixed(1)} %`;
  return "below 0.1 %";
}

/**
 * A negative number with a real minus sign.
 *
 * @param {number} value
 * @param {number} digits
 * @returns {string}
 */
export function signed(value, digits) {
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `−${text}` : text;
}

/**
 * A function that waits until it was not called for a while.
 *
 * @param {() => void} action
 * @param {number} milliseconds
 * @returns {() => void}
 */
export function debounced(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}
