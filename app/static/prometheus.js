/** Prometheus' text format, and what the charts need of it. */

/**
 * @typedef {{labels: Record<string, string>, value: number}} Sample
 */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/**
 * All samples by their names.
 *
 * @param {string} text
 * @returns {Map<string, Sample[]>}
 */
export function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const [, name, labelText, value] = SAMPLE.exec(line) ?? [];
    if (name === undefined) continue; // a comment or an empty line
    const labels = {};
    for (const [, label, escaped] of (labelText ?? "").matchAll(LABEL)) {
      labels[label] = escaped.replace(/\\[n"\\]/g, (escape) => ESCAPES[escape]);
    }
    const samples = metrics.get(name) ?? [];
    samples.push({ labels, value: numberOf(value) });
    metrics.set(name, samples);
  }
  return metrics;
}

function numberOf(text) {
  if (text === "+Inf") return Infinity;
  return text === "-Inf" ? -Infinity : Number(text);
}

/**
 * The sum of a metric over all labels; 0 where it has no samples.
 *
 * @param {Map<string, Sample[]>} metrics
 * @param {string} name
 * @returns {number}
 */
export function total(metrics, name) {
  return (metrics.get(name) ?? []).reduce((sum, sample) => sum + sample.value, 0);
}

/**
 * A histogram's cumulative counts by upper bound, summed over all labels.
 *
 * @param {Map<string, Sample[]>} metrics
 * @param {string} name
 * @returns {Map<number, number>}
 */
export function buckets(metrics, name) {
  const counts = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const bound = numberOf(labels.le);
    counts.set(bound, (counts.get(bound) ?? 0) + value);
  }
  return counts;
}

/**
 * A quantile of what a histogram counted between two looks at it, as Prometheus estimates it:
 * even within a bucket. Null where nothing was counted.
 *
 * @param {Map<number, number>} earlier
 * @param {Map<number, number>} later
 * @param {number} quantile from 0 to 1
 * @returns {number | null}
 */
export function quantileBetween(earlier, later, quantile) {
  const bounds = [...later.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => later.get(bound) - (earlier.get(bound) ?? 0));
  const all = counts.at(-1) ?? 0;
  if (all <= 0) return null;
  const rank = quantile * all;
  const at = counts.findIndex((count) => count >= rank);
  if (bounds[at] === Infinity) return bounds[at - 1] ?? null;
  const [low, below] = at ? [bounds[at - 1], counts[at - 1]] : [0, 0];
  const inside = counts[at] - below;
  return inside ? low + ((bounds[at] - low) * (rank - below)) / inside : bounds[at];
}
