/** Which n-grams of a translation stand in its references, counted as BLEU counts. */

export const MAX_ORDER = 4;

/** sacreBLEU's tokenizers, those that need no tables. */
const TOKENIZERS = {
  none: (text) => text,
  char: (text) => [...text].filter((character) => !/\s/.test(character)).join(" "),
  "13a": (text) =>
    ` ${unescaped(text.replaceAll("<skipped>", ""))} `
      .replace(/([{-~[-` -&(-+:-@/])/g, " $1 ")
      .replace(/([^0-9])([.,])/g, "$1 $2 ")
      .replace(/([.,])([^0-9])/g, " $1 $2")
      .replace(/([0-9])(-)/g, "$1 $2 "),
  intl: (text) =>
    text
      .replace(/(\P{N})(\p{P})/gu, "$1 $2 ")
      .replace(/(\p{P})(\P{N})/gu, " $1 $2")
      .replace(/(\p{S})/gu, " $1 "),
};

/**
 * The tokens of a text as sacreBLEU cuts it.
 *
 * @param {string} text
 * @param {"13a" | "intl" | "char" | "none"} tokenizer
 * @returns {string[]}
 */
export function tokenize(text, tokenizer) {
  return TOKENIZERS[tokenizer](text.trim()).split(/\s+/).filter(Boolean);
}

/**
 * @typedef {object} Matches
 * @property {number[]} matched for each order, n-grams that count as right
 * @property {number[]} total for each order, n-grams that there are
 * @property {number[]} longest for each token, the order of the longest right n-gram over it
 * @property {number[]} begins for each token, where that n-gram begins; -1 without one
 */

/**
 * Hold a translation against its references. An n-gram counts as often as the reference that
 * has it most often has it; of its places in the translation the first ones count.
 *
 * @param {string[]} hypothesis tokens
 * @param {string[][]} references tokens of each
 * @param {boolean} ignoresCase
 * @returns {Matches}
 */
export function matchNgrams(hypothesis, references, ignoresCase) {
  const fold = (tokens) => (ignoresCase ? tokens.map((token) => token.toLowerCase()) : tokens);
  const tokens = fold(hypothesis);
  const found = {
    matched: [],
    total: [],
    longest: tokens.map(() => 0),
    begins: tokens.map(() => -1),
  };
  for (let order = 1; order <= MAX_ORDER; order += 1) {
    const left = mostOften(references.map((reference) => countNgrams(fold(reference), order)));
    let matched = 0;
    for (const [begin, key] of ngramsOf(tokens, order).entries()) {
      const count = left.get(key) ?? 0;
      if (!count) continue;
      left.set(key, count - 1);
      matched += 1;
      for (let index = begin; index < begin + order; index += 1) {
        if (found.longest[index] === order) continue;
        found.longest[index] = order;
        found.begins[index] = begin;
      }
    }
    found.matched.push(matched);
    found.total.push(Math.max(0, tokens.length - order + 1));
  }
  return found;
}

/**
 * Where an n-gram stands in a text.
 *
 * @param {string[]} ngram
 * @param {string[]} tokens
 * @param {boolean} ignoresCase
 * @returns {number} its first place, or -1
 */
export function findNgram(ngram, tokens, ignoresCase) {
  const key = keyOf(ignoresCase ? ngram.map((token) => token.toLowerCase()) : ngram);
  const folded = ignoresCase ? tokens.map((token) => token.toLowerCase()) : tokens;
  return ngramsOf(folded, ngram.length).indexOf(key);
}

function unescaped(text) {
  return text
    .replaceAll("&quot;", '"')
    .replaceAll("&amp;", "&")
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">");
}

function keyOf(tokens) {
  return tokens.join(" "); // no token holds white space
}

function ngramsOf(tokens, order) {
  const count = Math.max(0, tokens.length - order + 1);
  return Array.from({ length: count }, (_, at) => keyOf(tokens.slice(at, at + order)));
}

function countNgrams(tokens, order) {
  const counts = new Map();
  for (const key of ngramsOf(tokens, order)) counts.set(key, (counts.get(key) ?? 0) + 1);
  return counts;
}

function mostOften(counts) {
  const most = new Map();
  for (const [key, count] of counts.flatMap((one) => [...one])) {
    most.set(key, Math.max(count, most.get(key) ?? 0));
  }
  return most;
}
