/** Says what went wrong, next to what caused it. */

import { element } from "./dom.js";
import { Problem, ServerAway } from "./server.js";

/**
 * Show an error: at the fields that the server names, else in the panel's own line.
 *
 * @param {HTMLElement} panel
 * @param {unknown} error
 */
export function showProblem(panel, error) {
  clearProblem(panel);
  if (!(error instanceof Problem || error instanceof ServerAway)) throw error;
  const unplaced = [];
  for (const { field, message } of error instanceof Problem ? error.errors : []) {
    const [name, index] = field.split(".");
    const control = name ? panel.querySelector(`[name="${CSS.escape(name)}"]`) : null;
    const where = index === undefined ? "" : `${Number(index) + 1}: `;
    if (!markField(control, sentence(where + message))) unplaced.push(field);
  }
  if (error instanceof ServerAway || !error.errors.length || unplaced.length) {
    const line = lineOf(panel);
    line.textContent = sentence(error.message);
    line.hidden = false;
    if (error instanceof ServerAway) line.dataset.absent = "true";
  }
}

/**
 * Take back what was said about a server that now is there again.
 *
 * @param {HTMLElement} panel
 */
export function forgetAbsence(panel) {
  if (lineOf(panel).dataset.absent) clearProblem(panel);
}

/** @param {HTMLElement} panel */
export function clearProblem(panel) {
  const line = lineOf(panel);
  line.hidden = true;
  line.textContent = "";
  delete line.dataset.absent;
  for (const mark of panel.querySelectorAll(".field-problem")) mark.remove();
  for (const control of panel.querySelectorAll("[aria-invalid]")) {
    control.removeAttribute("aria-invalid");
    control.removeAttribute("aria-describedby");
  }
}

/**
 * @param {HTMLElement} panel
 * @returns {HTMLElement}
 */
function lineOf(panel) {
  return panel.querySelector(".problem");
}

function markField(control, message) {
  const field = control?.closest(".field");
  if (!field || field.hidden) return false;
  const id = `${control.id}-problem`;
  field.querySelector(".field-problem")?.remove();
  field.append(element("p", { id, class: "field-problem", role: "alert" }, message));
  control.setAttribute("aria-invalid", "true");
  control.setAttribute("aria-describedby", id);
  return true;
}

function sentence(text) {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
