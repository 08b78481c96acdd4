/** Puts the page together: tabs, panels, the models there are, and whether the server is there. */

import { access, KeyForm } from "./access.js";
import { BleuPanel } from "./bleu.js";
import { byId } from "./dom.js";
import { GeneratePanel } from "./generate.js";
import { clearProblem, forgetAbsence } from "./problems.js";
import { connection, getJson, Problem, ServerAway } from "./server.js";
import { StatusPanel } from "./status.js";
import { Tabs } from "./tabs.js";
import { TranslatePanel } from "./translate.js";

const WORDS = {
  connecting: "connecting",
  ready: "ready",
  "not-ready": "not ready",
  away: "not reachable",
};

new KeyForm();
const tabs = new Tabs(document.querySelector('[role="tablist"]'));
const status = new StatusPanel();
const panels = [new TranslatePanel(), new GeneratePanel(), new BleuPanel(), status];

function showConnection() {
  const { state, detail } = connection;
  byId("connection").dataset.state = state;
  byId("connection-text").textContent = WORDS[state];
  const notice = byId("away");
  notice.hidden = state === "ready" || state === "connecting";
  notice.textContent =
    state === "away"
      ? "The server cannot be reached. This page keeps trying and goes on by itself."
      : `The server is not ready: ${detail}. This page goes on as soon as it is.`;
  if (state === "ready") loadModels();
}

async function loadModels() {
  try {
    const { models } = await getJson("models");
    for (const panel of panels) {
      forgetAbsence(panel.panel);
      panel.useModels(models);
    }
  } catch (error) {
    // The connection notices, or a key is asked for; either comes back here.
    if (!(error instanceof Problem || error instanceof ServerAway)) throw error;
  }
}

tabs.addEventListener("open", () => status.setVisible(tabs.opened === "status"));
connection.addEventListener("change", showConnection);
access.addEventListener("change", () => {
  for (const { panel } of panels) clearProblem(panel);
  loadModels();
});
tabs.openFromAddress();
connection.watch();
