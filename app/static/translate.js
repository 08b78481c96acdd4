/** The panel that translates while one types. */

import { showBeamTree } from "./beam_tree.js";
import { byId, debounced, element, numberIn, percent, signed } from "./dom.js";
import { showHeatMap } from "./heat_map.js";
import { offerModels } from "./model_choice.js";
import { clearProblem, showProblem } from "./problems.js";
import { cutSentences } from "./sentences.js";
import { isAbort, KEY_CODES, postJson, Problem, ServerAway } from "./server.js";

const PAUSE_MILLISECONDS = 300;
const FIRST_TEXT = { en: "The little boy is afraid of dogs.", fr: "J'ai besoin d'aide." };
/** Errors of a server that is there again soon. */
const UNAVAILABLE = ["not_ready", "draining", "engine_failed"];
const LANGUAGE_NAMES = new Intl.DisplayNames(["en"], { type: "language" });

export class TranslatePanel {
  constructor() {
    this.panel = byId("translate");
    this.form = byId("translate-form");
    this.text = byId("translate-text");
    this.output = byId("translate-output");
    this.model = byId("translate-model");
    this.models = [];
    this.withoutAttention = new Set();
    this.abort = new AbortController();
    this.missed = false;
    this.sentences = [];
    this.translations = [];
    this.chosen = { sentence: 0, hypothesis: 0 };
    this.trace = byId("trace");
    /** Traces that were fetched, by sentence. @type {Map<number, any[][]>} */
    this.traces = new Map();
    this.options = {};
    this.trace.addEventListener("toggle", () => this.showTrace());
    const later = debounced(() => this.translate(), PAUSE_MILLISECONDS);
    this.form.addEventListener("input", later);
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.model.addEventListener("change", () => this.nameLanguages());
    this.output.addEventListener("click", (event) => this.chooseSentence(event.target));
    this.output.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.chooseSentence(event.target);
    });
    this.panel.querySelector(".choices").addEventListener("change", (event) => {
      this.chosen.hypothesis = Number(event.target.value);
      this.showChosen();
    });
  }

  /** @param {any[]} models as GET /models lists them */
  useModels(models) {
    const isFirst = !this.models.length;
    this.models = offerModels(this.model, models, "translate");
    this.nameLanguages();
    if (isFirst && !this.text.value) this.text.value = FIRST_TEXT[this.languages.source] ?? "";
    if (isFirst || this.missed) this.translate();
  }

  get languages() {
    const model = this.models.find(({ name }) => name === this.model.value);
    return model?.languages ?? { source: "", target: "" };
  }

  nameLanguages() {
    const { source, target } = this.languages;
    byId("translate-source").textContent = nameOf(source) || "Text";
    byId("translate-target").textContent = nameOf(target) || "Translation";
    this.text.lang = source;
    this.output.lang = target;
  }

  /** Translate what stands there now; an answer that is still on its way is given up. */
  async translate() {
    this.abort.abort();
    this.abort = new AbortController();
    const { signal } = this.abort;
    const sentences = cutSentences(this.text.value, this.languages.source);
    this.missed = false;
    clearProblem(this.panel);
    if (!sentences.length || !this.models.length) {
      this.show([], { translations: [] }, {});
      return;
    }
    this.output.setAttribute("aria-busy", "true");
    try {
      const options = this.readOptions();
      const answer = await this.ask(sentences, options, signal);
      this.show(sentences, answer, options);
    } catch (error) {
      if (isAbort(error)) return;
      this.missed = error instanceof ServerAway || [...UNAVAILABLE, ...KEY_CODES].includes(error.code);
      const isStale = this.sentences.length > 0;
      byId("translate-note").textContent = isStale ? "From before, not of what stands there now." : "";
      showProblem(this.panel, error);
    }
    // A newer request has its own end.
    if (!signal.aborted) this.output.removeAttribute("aria-busy");
  }

  readOptions() {
    const beamSize = numberIn(byId("translate-beam"));
    const best = numberIn(byId("translate-best")) ?? 1;
    return {
      model: this.model.value,
      beam_size: beamSize,
      length_penalty: numberIn(byId("translate-penalty")),
      num_hypotheses: Math.min(best, beamSize || best),
    };
  }

  /** Ask for alignments, too, but for a model that has none, or too long a text. */
  async ask(sentences, options, signal) {
    const { model } = options;
    const body = { ...options, text: sentences.map((sentence) => sentence.text) };
    if (this.withoutAttention.has(model)) return postJson("translate", body, signal);
    try {
      return await postJson("translate", { ...body, alignments: true }, signal);
    } catch (error) {
      const isTooLarge = error instanceof Problem && error.errors[0]?.field === "alignments";
      if (error.code === "unsupported_model") this.withoutAttention.add(model);
      else if (!isTooLarge) throw error;
      return postJson("translate", body, signal);
    }
  }

  show(sentences, answer, options) {
    this.sentences = sentences;
    this.options = options;
    this.traces.clear();
    this.translations = answer.translations;
    this.chosen = { sentence: 0, hypothesis: 0 };
    const isOne = sentences.length === 1;
    this.output.replaceChildren(
      ...answer.translations.flatMap(({ text }, index) => {
        const attributes = { class: "sentence", role: "button", tabindex: 0, "data-index": index };
        return [element("span", isOne ? {} : attributes, text), sentences[index].space];
      }),
    );
    byId("translate-note").textContent = answer.timings ? noteOf(answer) : "";
    byId("translate-details").hidden = !sentences.length;
    this.showSentence();
  }

  chooseSentence(target) {
    const sentence = target.closest(".sentence");
    if (!sentence) return;
    this.chosen = { sentence: Number(sentence.dataset.index), hypothesis: 0 };
    this.showSentence();
  }

  showSentence() {
    const translation = this.translations[this.chosen.sentence];
    for (const [index, sentence] of this.output.querySelectorAll(".sentence").entries()) {
      sentence.setAttribute("aria-pressed", String(index === this.chosen.sentence));
    }
    if (!translation) return;
    const { hypotheses } = translation;
    this.panel.querySelector(".choices").replaceChildren(
      ...hypotheses.map((hypothesis, index) => choiceOf(hypothesis, index, hypotheses[0])),
    );
    this.showChosen();
  }

  showChosen() {
    const { hypotheses } = this.translations[this.chosen.sentence];
    const { alignment } = hypotheses[this.chosen.hypothesis];
    showHeatMap(byId("attention-map"), byId("attention-readout"), alignment, this.languages);
    this.showTrace();
  }

  /** Ask for the chosen sentence's trace when somebody looks: it is longer than all the rest. */
  async showTrace() {
    if (!this.trace.open || !this.sentences.length) return;
    const { sentence, hypothesis } = this.chosen;
    const { signal } = this.abort;
    const tree = byId("trace-tree");
    if (!this.traces.has(sentence)) {
      try {
        const body = { ...this.options, text: this.sentences[sentence].text, beam_trace: true };
        const answer = await postJson("translate", body, signal);
        if (signal.aborted) return;
        this.traces.set(sentence, answer.translations[0].beam_trace);
      } catch (error) {
        if (isAbort(error)) return;
        const words = error instanceof Problem ? error.detail : error.message;
        tree.replaceChildren(element("p", { class: "empty" }, `No trace: ${words}`));
        return;
      }
    }
    // Meanwhile another one may have been chosen, which has its own call.
    if (this.chosen.sentence !== sentence || this.chosen.hypothesis !== hypothesis) return;
    const trace = this.traces.get(sentence);
    const { score } = this.translations[sentence].hypotheses[hypothesis];
    showBeamTree(tree, byId("trace-readout"), trace, score, this.languages.target);
  }
}

function nameOf(language) {
  if (!language) return "";
  try {
    return LANGUAGE_NAMES.of(language);
  } catch {
    return language; // a model may call its languages as it likes
  }
}

function noteOf({ model, usage, timings }) {
  const milliseconds = Math.max(1, Math.round(timings.total_ms));
  return `${model}, ${usage.output_tokens} tokens in ${milliseconds} ms`;
}

function choiceOf(hypothesis, index, best) {
  const input = element("input", {
    type: "radio",
    name: "hypothesis",
    value: index,
    checked: index === 0,
  });
  const cut = hypothesis.finish_reason === "length" ? [element("small", {}, "cut at the limit")] : [];
  return element(
    "label",
    { class: "choice" },
    input,
    element("span", { class: "choice-text" }, hypothesis.text || "(nothing)", ...cut),
    element("span", { class: "bar", "--part": Math.exp(hypothesis.score), "aria-hidden": "true" }),
    element(
      "span",
      { class: "number", title: scoreWords(hypothesis, best) },
      signed(hypothesis.score, 3),
    ),
  );
}

function scoreWords({ score, tokens }, best) {
  const ratio = percent(Math.exp(score - best.score));
  return `${tokens} tokens; e to the score is ${ratio} of the best one's`;
}
