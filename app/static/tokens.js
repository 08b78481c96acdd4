/** How tokens are shown to people. */

/**
 * A token as a person reads it: SentencePiece's mark for a space becomes nothing, what goes on
 * in a word a hyphen, and the end says so.
 *
 * @param {string} token
 * @param {boolean} arePieces whether the tokens are pieces of words
 * @returns {string}
 */
export function shownToken(token, arePieces) {
  if (token === "<eos>") return "end";
  if (token === "<unk>") return "unknown";
  if (!arePieces) return token.replace(/ /g, "␣").replace(/\n/g, "⏎") || "∅";
  if (token.startsWith("▁")) return token.slice(1).replace(/▁/g, " ") || "␣";
  return /^\p{P}+$/u.test(token) ? token : `-${token}`;
}

/**
 * Whether tokens are SentencePiece's pieces of words.
 *
 * @param {string[]} tokens
 * @returns {boolean}
 */
export function arePieces(tokens) {
  return tokens.some((token) => token.startsWith("▁"));
}
