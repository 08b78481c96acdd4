/** The list of models in a panel's select element. */

import { element } from "./dom.js";

/**
 * Offer the models that can do a task; keep the choice where there still is such a model.
 *
 * @param {HTMLSelectElement} select
 * @param {any[]} models as GET /models lists them
 * @param {"generate" | "translate"} task
 * @returns {any[]} those offered, possibly none
 */
export function offerModels(select, models, task) {
  const before = select.value;
  const offered = models.filter((model) => model.tasks.includes(task));
  const options = offered.map((model) => element("option", { value: model.name }, model.name));
  if (!options.length) options.push(element("option", { value: "" }, `none loaded can ${task}`));
  select.replaceChildren(...options);
  const preset = offered.find((model) => model.default_for.includes(task));
  const isThere = offered.some((model) => model.name === before);
  select.value = isThere ? before : (preset?.name ?? offered[0]?.name ?? "");
  select.disabled = !offered.length;
  return offered;
}
