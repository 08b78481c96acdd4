/** The panel that shows how the server is doing. */

import { Chart } from "./chart.js";
import { byId, element } from "./dom.js";
import { clearProblem, showProblem } from "./problems.js";
import { buckets, parseMetrics, quantileBetween, total } from "./prometheus.js";
import { connection, getText } from "./server.js";

const SECONDS_BETWEEN = 2;
const LOOKS = 60;
/** Looks that one latency is estimated over: 20 seconds. */
const LATENCY_LOOKS = 10;

export class StatusPanel {
  constructor() {
    this.panel = byId("status");
    this.timer = 0;
    this.isVisible = false;
    this.isPaused = false;
    /** @type {{at: number, metrics: Map<string, any[]>}[]} the oldest first */
    this.looks = [];
    this.charts = {
      tokens: new Chart("Tokens a second", "A token of every row: outputs and beams alike.", rate),
      rows: new Chart("Rows running", "Outputs and beams being decoded, of those there is room for.", whole),
      queue: new Chart("Waiting", "Texts that wait for free rows.", whole),
      latency: new Chart("Time of a request", "The median, and paler the 95th percentile, over 20 seconds.", duration),
      firstToken: new Chart("Time to first token", "The median, and paler the 95th percentile, over 20 seconds.", duration),
      requests: new Chart("Requests a second", "Of all endpoints, whatever the outcome.", rate),
    };
    byId("status-charts").append(...Object.values(this.charts).map((chart) => chart.node));
    byId("status-pause").addEventListener("click", () => this.setPaused(!this.isPaused));
    document.addEventListener("visibilitychange", () => this.goOn());
    connection.addEventListener("change", () => this.goOn());
  }

  /** @param {boolean} isVisible whether the panel is open */
  setVisible(isVisible) {
    this.isVisible = isVisible;
    this.goOn();
  }

  setPaused(isPaused) {
    this.isPaused = isPaused;
    byId("status-pause").setAttribute("aria-pressed", String(isPaused));
    this.goOn();
  }

  /** Look now and again from time to time, while somebody may be watching. */
  goOn() {
    clearTimeout(this.timer);
    if (!this.isVisible || this.isPaused || document.hidden) return;
    if (connection.state === "away") return; // the connection calls when it is back
    this.look();
  }

  async look() {
    clearTimeout(this.timer);
    try {
      const metrics = parseMetrics(await getText("metrics"));
      clearProblem(this.panel);
      this.add(metrics);
    } catch (error) {
      showProblem(this.panel, error);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.goOn(), SECONDS_BETWEEN * 1000);
  }

  add(metrics) {
    const at = performance.now() / 1000;
    const last = this.looks.at(-1);
    // Counters that fell are those of another process; after a long pause a line would lie.
    const isNew =
      last &&
      (total(metrics, STEP_ROWS) < total(last.metrics, STEP_ROWS) ||
        at - last.at > 5 * SECONDS_BETWEEN);
    this.looks = [...(isNew ? [] : this.looks), { at, metrics }].slice(-LOOKS - 1);
    this.draw();
  }

  draw() {
    const { charts } = this;
    this.drawOne(charts.tokens, [this.rates(STEP_ROWS)], rate);
    this.drawOne(charts.requests, [this.rates("gatehouse_requests_total")], rate);
    this.drawOne(charts.queue, [this.gauges("gatehouse_queue_depth")], whole);
    const budget = total(this.looks.at(-1).metrics, "gatehouse_row_budget");
    this.drawOne(charts.rows, [this.gauges("gatehouse_rows_running")], (value) => `${whole(value)} of ${budget}`);
    for (const [chart, name] of [
      [charts.latency, "gatehouse_request_seconds"],
      [charts.firstToken, "gatehouse_first_token_seconds"],
    ]) {
      this.drawOne(chart, [this.quantiles(name, 0.5), this.quantiles(name, 0.95)], duration);
    }
  }

  drawOne(chart, series, words) {
    const now = series.map((values) => values.at(-1) ?? null);
    const text = now.some((value) => value === null) ? "–" : now.map(words).join(" / ");
    chart.draw(series.map((values) => ({ values })), LOOKS, text);
  }

  gauges(name) {
    return this.looks.slice(-LOOKS).map(({ metrics }) => total(metrics, name));
  }

  rates(name) {
    return this.looks.slice(1).map(({ at, metrics }, index) => {
      const before = this.looks[index];
      const counted = total(metrics, name) - total(before.metrics, name);
      return Math.max(0, counted) / (at - before.at);
    });
  }

  quantiles(name, quantile) {
    return this.looks.slice(1).map(({ metrics }, index) => {
      const before = this.looks[Math.max(0, index + 1 - LATENCY_LOOKS)];
      return quantileBetween(buckets(before.metrics, name), buckets(metrics, name), quantile);
    });
  }

  /** @param {any[]} models as GET /models lists them */
  useModels(models) {
    byId("status-models").replaceChildren(...models.map(modelCard));
  }
}

const STEP_ROWS = "gatehouse_step_rows_sum";

function modelCard(model) {
  const { languages, quality } = model;
  const what = languages
    ? `translates ${languages.source} to ${languages.target}`
    : model.tasks.length
      ? "writes on"
      : "has no task here";
  const facts = [
    `${(model.parameters / 1e6).toFixed(1)} M parameters`,
    `${model.tokenizer} tokenizer, ${model.vocabulary_size} tokens`,
    `${model.precision} on ${model.device}`,
    `loaded in ${duration(model.load_seconds)}`,
    model.licence,
  ];
  const metrics = Object.entries(quality.metrics).flatMap(([name, value]) => [
    element("dt", {}, name.replaceAll("_", " ")),
    element("dd", {}, String(value)),
  ]);
  return element(
    "article",
    { class: "model" },
    element("h3", {}, model.name, element("small", {}, what)),
    element("p", { class: "facts" }, facts.join(" · ")),
    element(
      "details",
      {},
      element("summary", {}, "Quality and data"),
      element("dl", {}, ...metrics),
      element("p", { class: "hint" }, quality.note),
      element("p", { class: "hint" }, model.data.map(({ name }) => name).join("; ")),
      ...(model.attribution ? [element("p", { class: "hint" }, model.attribution)] : []),
    ),
  );
}

function whole(value) {
  return String(Math.round(value));
}

function rate(value) {
  return value >= 10 || value === 0 ? Math.round(value).toLocaleString("en") : value.toFixed(1);
}

function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  const milliseconds = seconds * 1000;
  return `${milliseconds.toFixed(milliseconds >= 10 ? 0 : 1)} ms`;
}
