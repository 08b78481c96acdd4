/** The panel that scores translations, one's own or the model's. */

import { byId, element, numberIn } from "./dom.js";
import { offerModels } from "./model_choice.js";
import { findNgram, matchNgrams, MAX_ORDER, tokenize } from "./ngrams.js";
import { clearProblem, showProblem } from "./problems.js";
import { isAbort, postJson } from "./server.js";
import { TokenLine } from "./token_line.js";

const SEVERAL = "|||";
const EXAMPLE = {
  hypotheses: "J'ai froid.\nIl est content de son nouveau travail.\nOù est la gare ?",
  sources: "I am cold.\nHe likes his new job.\nWhere is the station?",
  references:
    "J'ai froid.\nIl est heureux de son nouveau travail. ||| Il aime son nouveau travail.\nOù se trouve la gare ?",
};

export class BleuPanel {
  constructor() {
    this.panel = byId("bleu");
    this.form = byId("bleu-form");
    this.result = byId("bleu-result");
    this.model = byId("bleu-model");
    this.abort = new AbortController();
    for (const [name, text] of Object.entries(EXAMPLE)) byId(`bleu-${name}`).value = text;
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.score();
    });
    this.form.addEventListener("change", () => this.showMode());
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.showMode();
  }

  /** @param {any[]} models as GET /models lists them */
  useModels(models) {
    const hasNone = !offerModels(this.model, models, "translate").length;
    this.form.elements.mode[1].disabled = hasNone;
  }

  get translates() {
    return this.form.elements.mode.value === "sources";
  }

  showMode() {
    byId("bleu-hypotheses-field").hidden = this.translates;
    for (const name of ["sources", "model", "beam"]) {
      byId(`bleu-${name}-field`).hidden = !this.translates;
    }
  }

  async score() {
    this.abort.abort();
    const abort = new AbortController();
    this.abort = abort;
    clearProblem(this.panel);
    const given = linesOf(byId(this.translates ? "bleu-sources" : "bleu-hypotheses").value);
    const references = linesOf(byId("bleu-references").value).map((line) =>
      line.split(SEVERAL).map((reference) => reference.trim()),
    );
    const body = {
      references,
      metrics: ["bleu", "chrf"],
      tokenize: byId("bleu-tokenize").value,
      lowercase: byId("bleu-lowercase").checked,
      sentence_level: true,
      ...this.whatToScore(given),
    };
    byId("bleu-note").textContent = this.translates ? "Translating and scoring …" : "Scoring …";
    try {
      const answer = await postJson("bleu", body, abort.signal);
      this.show(answer, answer.hypotheses ?? given, body);
    } catch (error) {
      if (isAbort(error)) return;
      byId("bleu-note").textContent = "";
      this.result.hidden = true;
      showProblem(this.panel, error);
    }
  }

  whatToScore(given) {
    if (!this.translates) return { hypotheses: given };
    return {
      sources: given,
      model: this.model.value,
      beam_size: numberIn(byId("bleu-beam")),
    };
  }

  show({ scores, model }, hypotheses, body) {
    const { bleu, chrf } = scores;
    const by = model ? `, translated by ${model}` : "";
    byId("bleu-note").textContent =
      `BLEU ${bleu.score.toFixed(1)} over ${hypotheses.length} ${hypotheses.length === 1 ? "sentence" : "sentences"}${by}.`;
    const sentences = hypotheses.map((hypothesis, index) =>
      sentenceCard(hypothesis, body, index, bleu.sentences[index]),
    );
    this.result.replaceChildren(corpusCard(bleu, chrf), sentenceList(sentences));
    this.result.hidden = false;
  }
}

/** Lines, without the empty ones at the end: one in between is an empty translation. */
function linesOf(text) {
  return text.trimEnd().split("\n");
}

function corpusCard(bleu, chrf) {
  const precisions = bleu.precisions.map((precision, index) =>
    element(
      "li",
      {},
      element("span", {}, `${index + 1}-grams`),
      element("span", { class: "bar", "--part": precision / 100, "aria-hidden": "true" }),
      element("span", { class: "number" }, `${precision.toFixed(1)} %`),
    ),
  );
  return element(
    "section",
    { class: "card corpus", "aria-labelledby": "bleu-title" },
    element("h2", { id: "bleu-title" }, "All together"),
    element(
      "div",
      { class: "corpus-parts" },
      figure("BLEU", bleu.score.toFixed(1), "big"),
      figure("chrF", chrf.score.toFixed(1)),
      figure("Brevity penalty", bleu.brevity_penalty.toFixed(3)),
      figure("Length", `${bleu.hypothesis_length} of ${bleu.reference_length} tokens`),
      element("ul", { class: "precisions", "aria-label": "Precisions" }, ...precisions),
    ),
    element("p", { class: "signature" }, bleu.signature),
  );
}

function figure(name, value, kind = "") {
  return element(
    "p",
    { class: `figure ${kind}` },
    element("span", { class: "figure-name" }, name),
    element("span", { class: "figure-value" }, value),
  );
}

function sentenceList(cards) {
  const legend = ["no match", "1-gram", "2-gram", "3-gram", "4-gram"].map((words, order) =>
    element("li", {}, element("span", { class: `swatch match-${order}` }), words),
  );
  return element(
    "section",
    { class: "card", "aria-labelledby": "sentences-title" },
    element(
      "div",
      { class: "card-head" },
      element("h2", { id: "sentences-title" }, "Sentence by sentence"),
      element("ul", { class: "legend", "aria-label": "Marks: longest n-gram that a word is in and a reference has" }, ...legend),
    ),
    element("ol", { class: "sentences" }, ...cards),
  );
}

function sentenceCard(hypothesis, body, index, score) {
  const tokens = tokenize(hypothesis, body.tokenize);
  const references = body.references[index].map((text) => tokenize(text, body.tokenize));
  const matches = matchNgrams(tokens, references, body.lowercase);
  const readout = element("p", { class: "readout", "aria-live": "polite" });
  const shown = references.map((reference) =>
    reference.map((token) => element("span", { class: "token" }, token)),
  );
  const line = new TokenLine(`Translation ${index + 1}`, (token) => {
    for (const mark of shown.flat()) mark.classList.remove("current");
    const at = line.tokens.indexOf(token);
    readout.textContent = at < 0 ? "" : pointAt(at);
  });
  function pointAt(at) {
    const order = matches.longest[at];
    if (!order) return `“${tokens[at]}” has no match left in a reference`;
    const ngram = tokens.slice(matches.begins[at], matches.begins[at] + order);
    for (const [which, reference] of references.entries()) {
      const place = findNgram(ngram, reference, body.lowercase);
      if (place < 0) continue;
      for (const mark of shown[which].slice(place, place + order)) mark.classList.add("current");
    }
    return `“${ngram.join(" ")}” is a ${order}-gram of a reference`;
  }
  for (const [at, token] of tokens.entries()) {
    line.append(element("span", { class: `match-${matches.longest[at]}` }, token), " ");
  }
  if (!tokens.length) line.node.append(element("span", { class: "empty" }, "(empty)"));
  const counts = Array.from({ length: MAX_ORDER }, (_, order) =>
    element("li", {}, `${order + 1}-grams ${matches.matched[order]}/${matches.total[order]}`),
  );
  return element(
    "li",
    {},
    element("p", { class: "figure" }, element("span", { class: "figure-value" }, score.toFixed(1))),
    element(
      "div",
      { class: "sentence-body" },
      line.node,
      ...shown.map((marks) =>
        element("p", { class: "reference" }, ...marks.flatMap((mark) => [mark, " "])),
      ),
      element(
        "div",
        { class: "counts-line" },
        element("ul", { class: "counts", "aria-label": "Matching n-grams by length" }, ...counts),
        readout,
      ),
    ),
  );
}
