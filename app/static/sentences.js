/** Cuts a text into sentences: the translation models read one at a time. */

/**
 * @typedef {{text: string, space: string}} Sentence a sentence and the white space behind it
 */

/**
 * @param {string} text
 * @param {string} language
 * @returns {Sentence[]}
 */
export function cutSentences(text, language) {
  const sentences = [];
  for (const line of text.split(/(?<=\n)/)) {
    for (const part of segmentsOf(line, language)) {
      const said = part.trim();
      if (said) sentences.push({ text: said, space: /\s*$/.exec(part)[0] });
      else if (sentences.length) sentences.at(-1).space += part;
    }
  }
  return sentences;
}

function segmentsOf(line, language) {
  if (!("Segmenter" in Intl)) return [line];
  const segmenter = new Intl.Segmenter(language || "en", { granularity: "sentence" });
  return [...segmenter.segment(line)].map((part) => part.segment);
}
