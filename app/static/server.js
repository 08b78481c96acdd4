/** Talks to the server: answers, streams, its errors, and whether it is there at all. */

import { access } from "./access.js";
import { readEvents } from "./events.js";

/** The server's own words for what went wrong (application/problem+json). */
export class Problem extends Error {
  /**
   * @param {{code: string, title: string, detail: string, status: number,
   *   errors?: {field: string, message: string}[]}} problem
   */
  constructor(problem) {
    super(`${problem.title}: ${problem.detail}`);
    this.code = problem.code;
    this.detail = problem.detail;
    this.errors = problem.errors ?? [];
  }
}

/** Nobody answers, or an answer broke off. */
export class ServerAway extends Error {}

/** Codes of errors that another key would mend. */
export const KEY_CODES = ["missing_api_key", "invalid_api_key"];
const NO_ANSWER = "The server does not answer.";
const BROKEN_OFF = "The server broke off in the middle of its answer.";

/**
 * Whether an error only says that a request was given up here.
 *
 * @param {unknown} error
 * @returns {boolean}
 */
export function isAbort(error) {
  return error instanceof DOMException && error.name === "AbortError";
}

const READY_PATH = "health/ready";
const READY_SECONDS = 10;
const FIRST_RETRY_SECONDS = 1;
const LONGEST_RETRY_SECONDS = 5;

/**
 * Whether the server is there: `connecting`, `ready`, `not-ready` or `away`. It asks by itself,
 * more often while the server is not ready, and sends `change` events.
 */
class Connection extends EventTarget {
  constructor() {
    super();
    this.state = "connecting";
    this.detail = "";
    this.timer = 0;
    this.retrySeconds = FIRST_RETRY_SECONDS;
  }

  /** Ask now, and go on asking. */
  async watch() {
    clearTimeout(this.timer);
    try {
      await getJson(READY_PATH);
      this.report("ready");
    } catch (error) {
      if (error instanceof Problem) this.report("not-ready", error.detail);
    }
    this.schedule();
  }

  schedule() {
    clearTimeout(this.timer);
    let seconds = READY_SECONDS;
    if (this.state !== "ready") {
      seconds = this.retrySeconds;
      this.retrySeconds = Math.min(LONGEST_RETRY_SECONDS, seconds * 1.5);
    }
    this.timer = setTimeout(() => this.watch(), seconds * 1000);
  }

  /**
   * @param {"ready" | "not-ready" | "away"} state
   * @param {string} [detail]
   */
  report(state, detail = "") {
    if (state === this.state && detail === this.detail) return;
    this.state = state;
    this.detail = detail;
    this.retrySeconds = FIRST_RETRY_SECONDS;
    this.schedule();
    this.dispatchEvent(new Event("change"));
  }
}

export const connection = new Connection();

/**
 * What a path answers.
 *
 * @param {string} path
 * @returns {Promise<any>}
 * @throws {Problem} the server refuses
 * @throws {ServerAway} it does not answer
 */
export async function getJson(path) {
  return (await ask(path, {})).json();
}

/**
 * @param {string} path
 * @returns {Promise<string>}
 */
export async function getText(path) {
  return (await ask(path, {})).text();
}

/**
 * What the server answers to a body.
 *
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal gives the request up
 * @returns {Promise<any>}
 * @throws {Problem} the server refuses
 * @throws {ServerAway} it does not answer
 */
export async function postJson(path, body, signal) {
  const response = await ask(path, posted(body, signal));
  return whileThere(() => response.json(), BROKEN_OFF);
}

/**
 * The events of a streamed answer, up to its last one.
 *
 * @param {string} path
 * @param {object} body
 * @param {AbortSignal} signal gives the request up
 * @returns {AsyncGenerator<{event: string, data: any}>}
 * @throws {Problem} the server refuses, or fails on the way
 * @throws {ServerAway} it does not answer, or the answer breaks off
 */
export async function* postEvents(path, body, signal) {
  const response = await ask(path, posted({ ...body, stream: true }, signal));
  const events = readEvents(response.body);
  for (;;) {
    const { done, value } = await whileThere(() => events.next(), BROKEN_OFF);
    if (done) throw away(BROKEN_OFF);
    if (value.event === "error") throw new Problem(value.data);
    yield value;
    if (value.event === "done") return;
  }
}

function posted(body, signal) {
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

async function ask(path, options) {
  const headers = { ...access.headers, ...options.headers };
  const sent = { cache: "no-store", ...options, headers };
  const response = await whileThere(() => fetch(path, sent), NO_ANSWER);
  if (response.ok) {
    if (connection.state === "away" && path !== READY_PATH) connection.watch();
    return response;
  }
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.startsWith("application/problem+json")) {
    throw away(`Something between here and the server answered ${response.status}.`);
  }
  const problem = await whileThere(() => response.json(), BROKEN_OFF);
  if (KEY_CODES.includes(problem.code)) access.refuse();
  throw new Problem(problem);
}

async function whileThere(action, message) {
  try {
    return await action();
  } catch (error) {
    if (isAbort(error) || error instanceof Problem) throw error;
    throw away(message);
  }
}

function away(message) {
  connection.report("away");
  return new ServerAway(message);
}
