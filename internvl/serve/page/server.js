// The server as the page sees it: which model it has, and streamed answers. Keeps the API key of this tab.

import { readEvents } from "./sse.js";

const KEY = "v2pe-api-key";
const LARGE_BODY_BYTES = 8e6;
const BROKEN = "The connection broke before the answer ended.";
const PROXY_WORDS = {
  413: "the question is too large; remove a picture",
  429: "the server is busy; ask again in a moment",
};

export class Server {
  #askForKey;

  /** @param {(reason: string) => Promise<string | null>} askForKey called when the server wants a key; null gives up */
  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  /** The model that is served: `{id, v2pe: {versions, tokens_per_tile, max_tiles, ...}}`. */
  async model() {
    const response = await this.#fetch("v1/models");
    return (await response.json()).data[0];
  }

  /**
   * Asks one question and yields the answer as it comes: `{text}` with new words, `{reason, v2pe}` at the end of the
   * answer, `{usage}` with the token counts. Throws an Error in words for the person who asked, as all methods do.
   */
  async *answer(request, signal) {
    const body = JSON.stringify({
      ...request,
      stream: true,
      stream_options: { include_usage: true },
      return_positions: true,
    });
    const response = await this.#fetch("v1/chat/completions", { method: "POST", body, signal });
    let reason = null;
    for await (const data of untilBroken(readEvents(response.body))) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices?.[0];
      if (choice?.delta?.content) yield { text: choice.delta.content };
      if (choice?.finish_reason) {
        reason = choice.finish_reason;
        yield { reason, v2pe: chunk.v2pe };
      }
      if (chunk.usage) yield { usage: chunk.usage };
    }
    if (!reason) throw new Error(BROKEN);
  }

  async #fetch(path, options = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
      const response = await reach(path, { ...options, headers });
      if (response.ok) return response;
      const reason = await refusal(response);
      const newKey = response.status === 401 ? await this.#askForKey(reason) : null;
      if (newKey === null) throw new Error(reason);
      sessionStorage.setItem(KEY, newKey);
    }
  }
}

async function* untilBroken(events) {
  try {
    yield* events;
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(BROKEN);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const numBytes = options.body?.length ?? 0;
    throw new Error(
      numBytes > LARGE_BODY_BYTES
        ? `The connection broke while ${Math.round(numBytes / 1e6)} MB were sent: more than is allowed, perhaps.`
        : "The server does not answer. Is it still running?",
    );
  }
}

/** Why the server, or a proxy before it, says no. */
async function refusal(response) {
  const text = await response.text();
  try {
    return `${JSON.parse(text).error.message} (${response.status})`;
  } catch {
    return `${PROXY_WORDS[response.status] ?? "the server could not answer"} (${response.status})`;
  }
}
