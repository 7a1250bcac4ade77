// Lines of JSON, and their limits.

export const VERSION = 1;
export const MAX_LINE = 16 << 20;
export const MAX_VALUE = MAX_LINE - (64 << 10);
export const MAX_LOG_TEXT = 16 << 10;
export const MAX_LOGS = 1000;
export const MAX_MESSAGE = 4 << 10;
export const MAX_TRACE = 8 << 10;
export const HEARTBEAT_MS = 1000;

/** What came is no message. What follows could not be trusted. */
export class BrokenRules extends Error {}

/** A text of at most so many bytes, which says what was left out. */
export function bounded(text, most) {
  const data = Buffer.from(String(text).toWellFormed(), 'utf8');
  if (data.length <= most) return data.toString('utf8');
  let end = most - 48;
  while ((data[end] & 0xc0) === 0x80) end -= 1;
  return `${data.toString('utf8', 0, end)} [${data.length - end} bytes left out]`;
}

/** Splits what comes into lines, within MAX_LINE. */
export class Lines {
  #pieces = [];
  #size = 0;

  /** The whole lines that end with this. */
  * push(data) {
    let from = 0;
    for (;;) {
      const end = data.indexOf(10, from);
      const piece = data.subarray(from, end < 0 ? data.length : end);
      if (this.#size + piece.length >= MAX_LINE) throw new BrokenRules(`a line of more than ${MAX_LINE} bytes`);
      this.#pieces.push(piece);
      this.#size += piece.length;
      if (end < 0) return;
      const line = (this.#pieces.length === 1 ? piece : Buffer.concat(this.#pieces)).toString('utf8');
      this.#pieces = [];
      this.#size = 0;
      from = end + 1;
      if (line.trim() !== '') yield line;
    }
  }
}

/** The message of a line. */
export function parse(line) {
  let message;
  try {
    message = JSON.parse(line);
  } catch (error) {
    throw new BrokenRules(`no message: ${error.message}`);
  }
  if (typeof message !== 'object' || message === null || typeof message.msg !== 'string') {
    throw new BrokenRules('no message: a line is a JSON object with a text member `msg`');
  }
  return message;
}
