/** The panel that writes on: a stream, tinted by how probable each token was. */

import { byId, element, numberIn, percent, signed } from "./dom.js";
import { offerModels } from "./model_choice.js";
import { clearProblem, showProblem } from "./problems.js";
import { isAbort, postEvents } from "./server.js";
import { TokenLine } from "./token_line.js";
import { shownToken } from "./tokens.js";

/** Least probability of each tint, the palest first. */
const TINTS = [0.8, 0.5, 0.2, 0.05, 0];
const ENDS = {
  end: "The model ended the text.",
  length: "The number of tokens is reached.",
  stop: "A stop string came.",
};

export class GeneratePanel {
  constructor() {
    this.panel = byId("generate");
    this.prompt = byId("generate-prompt");
    this.output = byId("generate-output");
    this.model = byId("generate-model");
    this.readout = byId("generate-readout");
    this.abort = new AbortController();
    this.text = "";
    this.continuations = 0;
    this.line = null;
    byId("generate-legend").append(...TINTS.map(legendEntry));
    byId("generate-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    byId("generate-stop").addEventListener("click", () => this.abort.abort());
    byId("generate-continue").addEventListener("click", () => this.goOn());
  }

  /** @param {any[]} models as GET /models lists them */
  useModels(models) {
    byId("generate-start").disabled = !offerModels(this.model, models, "generate").length;
  }

  /** Begin a new text with the prompt. */
  start() {
    this.text = this.prompt.value;
    this.continuations = 0;
    this.line = new TokenLine("Generated text", (token) => this.point(token));
    this.line.node.prepend(element("span", { class: "given" }, this.text));
    this.output.replaceChildren(this.line.node);
    this.write();
  }

  /** Go on from where the text ended; with a seed of its own, not to draw the same numbers. */
  goOn() {
    this.continuations += 1;
    this.write();
  }

  async write() {
    this.abort.abort();
    const abort = new AbortController();
    this.abort = abort;
    clearProblem(this.panel);
    this.setRunning(true);
    this.note("Writing …");
    try {
      for await (const { event, data } of postEvents("generate", this.body(), abort.signal)) {
        if (event === "token") this.add(data);
        else if (event === "finish") this.note(finishWords(data));
      }
    } catch (error) {
      if (isAbort(error)) {
        if (this.abort !== abort) return; // another text was begun
        this.note("Stopped.");
      } else {
        this.note("");
        showProblem(this.panel, error);
      }
    }
    this.setRunning(false);
  }

  body() {
    const seed = numberIn(byId("generate-seed"));
    return {
      prompt: this.text,
      model: this.model.value,
      temperature: numberIn(byId("generate-temperature")),
      top_k: numberIn(byId("generate-top-k")),
      top_p: numberIn(byId("generate-top-p")),
      max_new_tokens: numberIn(byId("generate-length")),
      seed: seed === undefined ? undefined : seed + this.continuations,
      logprobs: true,
    };
  }

  /** Add one event's text, which is that of one token but where a character takes several. */
  add({ text, token_logprobs: tokens }) {
    const logprob = tokens.reduce((sum, token) => sum + token.logprob, 0);
    const names = tokens.map(({ token }) => shownToken(token, token.includes("▁")));
    const isEnd = tokens.at(-1)?.token === "<eos>";
    this.text += text;
    if (!text && !isEnd) return;
    const tint = TINTS.findIndex((least) => Math.exp(logprob) >= least);
    const attributes = { class: `tint-${tint}`, "data-name": names.join(" "), "data-logprob": logprob };
    this.line.append(element("span", attributes, text || "∎"));
  }

  point(token) {
    const logprob = Number(token?.dataset.logprob);
    this.readout.textContent = token
      ? `“${token.dataset.name}” had the probability ${percent(Math.exp(logprob))} (log ${signed(logprob, 2)})`
      : "";
  }

  note(text) {
    byId("generate-note").textContent = text;
  }

  setRunning(isRunning) {
    const stop = byId("generate-stop");
    const hadFocus = document.activeElement === stop;
    stop.disabled = !isRunning;
    byId("generate-continue").disabled = isRunning || !this.line?.tokens.length;
    // A disabled button would lose the focus to nowhere.
    if (hadFocus && !isRunning) byId("generate-start").focus();
  }
}

function finishWords({ finish_reason: reason, tokens, seed }) {
  const drawn = seed === null ? "Nothing was drawn." : `Seed ${seed}.`;
  return `${ENDS[reason]} ${tokens} tokens. ${drawn}`;
}

function legendEntry(least, index) {
  const most = index ? `${TINTS[index - 1] * 100}` : "";
  const words = index === 0 ? `above ${least * 100} %` : `${least * 100} to ${most} %`;
  return element("li", {}, element("span", { class: `swatch tint-${index}` }), words);
}
