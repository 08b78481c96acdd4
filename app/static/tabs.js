/** Tabs by the ARIA pattern: arrow keys, Home and End; the address says which one is open. */

import { around } from "./dom.js";

/** Sends `open` when another panel is, whose id is `opened`. */
export class Tabs extends EventTarget {
  /** @param {HTMLElement} list the element with the role tablist */
  constructor(list) {
    super();
    /** @type {HTMLElement[]} */
    this.tabs = Array.from(list.querySelectorAll('[role="tab"]'));
    this.opened = "";
    list.addEventListener("click", (event) => {
      const tab = around(event, '[role="tab"]');
      if (tab) this.choose(tab);
    });
    list.addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("hashchange", () => this.openFromAddress());
  }

  /** Open the tab that the address names, else the first. */
  openFromAddress() {
    const name = location.hash.slice(1);
    this.open(this.tabs.find((tab) => panelOf(tab).id === name) ?? this.tabs[0]);
  }

  onKey(event) {
    const at = this.tabs.findIndex((tab) => tab === document.activeElement);
    const last = this.tabs.length - 1;
    const next = {
      ArrowRight: at === last ? 0 : at + 1,
      ArrowLeft: at === 0 ? last : at - 1,
      Home: 0,
      End: last,
    }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    this.tabs[next].focus();
    this.choose(this.tabs[next]);
  }

  choose(tab) {
    history.replaceState(null, "", `#${panelOf(tab).id}`);
    this.open(tab);
  }

  open(chosen) {
    for (const tab of this.tabs) {
      const isChosen = tab === chosen;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
      panelOf(tab).hidden = !isChosen;
    }
    this.opened = panelOf(chosen).id;
    this.dispatchEvent(new Event("open"));
  }
}

function panelOf(tab) {
  return document.getElementById(tab.getAttribute("aria-controls"));
}
