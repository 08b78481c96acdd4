/** The API key, where the server asks for one: kept for this tab alone, and for no longer. */

import { byId } from "./dom.js";

const STORED_AS = "gatehouse.key";
/** What a header can hold. */
const KEY = /^[\x21-\x7e]+$/;

/** The key; `change` events tell of a new one, `refused` events that one is needed. */
class Access extends EventTarget {
  constructor() {
    super();
    this.key = stored(() => sessionStorage.getItem(STORED_AS)) ?? "";
  }

  /** @returns {Record<string, string>} what a request has to be sent with */
  get headers() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  }

  /** @param {string} key */
  use(key) {
    this.key = key;
    stored(() => sessionStorage.setItem(STORED_AS, key));
    this.dispatchEvent(new Event("change"));
  }

  /** The server turned a request away for the sake of its key. */
  refuse() {
    this.dispatchEvent(new Event("refused"));
  }
}

export const access = new Access();

/** The form that asks for the key, whenever the server does. */
export class KeyForm {
  constructor() {
    this.form = byId("key-form");
    this.input = byId("key");
    this.form.addEventListener("submit", (event) => this.submit(event));
    access.addEventListener("refused", () => this.ask());
  }

  ask() {
    this.say(access.key ? "The server does not know this key." : "");
    if (!this.form.hidden) return;
    this.form.hidden = false;
    if (document.activeElement === document.body) this.input.focus();
  }

  submit(event) {
    event.preventDefault();
    const key = this.input.value.trim();
    if (!KEY.test(key)) {
      this.say("A key has letters, digits and signs, and no spaces.");
      return;
    }
    this.input.value = "";
    this.form.hidden = true;
    access.use(key);
  }

  say(message) {
    byId("key-note").textContent = message;
  }
}

/** A browser may keep nothing at all; then the key lives as long as the page. */
function stored(action) {
  try {
    return action();
  } catch {
    return null;
  }
}
