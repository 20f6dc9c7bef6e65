// One answer of a turn: the text as it comes, its figures and its strip.

import { formatCount, formatNumber } from "./numbers.js";
import { describeBands, drawStrip, findBands, findExtent, findLineSpacing, summarise } from "./strip.js";
import { clone } from "./templates.js";

export class Answer {
  text = "";
  problem = null;
  #complete = false;
  #bands = null;
  #extent = null;
  #usage = null;

  /** @param {{rope_pos_id_version: string, rope_pos_id_stride: number | null}} positions as they are asked for */
  constructor(positions) {
    this.positions = positions;
    this.element = clone("answer");
    this.#find("h3").textContent = label(positions);
    this.retryButton = this.#find(".retry");
    new ResizeObserver(() => this.#drawStrip()).observe(this.#find(".strip"));
    this.restart();
  }

  /** Empties the answer before it is asked for, again or for the first time. */
  restart() {
    this.text = "";
    this.problem = null;
    this.#complete = false;
    this.#bands = null;
    this.element.setAttribute("aria-busy", "true");
    this.#find("figure").hidden = this.#find(".note").hidden = this.retryButton.hidden = true;
    this.#find(".text").textContent = "";
  }

  /** Whether it belongs into the conversation: complete, or at least begun. */
  get isUseful() {
    return this.#complete || this.text !== "";
  }

  /** What is needed to draw the rulers at one scale with other answers; 0 without figures. */
  get extent() {
    return this.#bands ? findExtent(this.#bands) : 0;
  }

  /** Takes one part of the server's answer, see `Server.answer`. */
  take({ text, reason, v2pe, usage }) {
    if (text) {
      this.text += text;
      this.#find(".text").append(text);
    }
    if (reason) {
      this.#complete = true;
      if (reason === "length") this.#note("The answer was cut at its longest length.");
    }
    if (v2pe) this.#showFigures(v2pe);
    if (usage) this.#setFact("answer", formatCount(usage.completion_tokens, "token"));
  }

  /** Ends an answer that was stopped or that failed. */
  fail(problem) {
    this.problem = problem;
    this.#note(problem, "problem");
    this.retryButton.hidden = false;
  }

  /** Marks that nothing more will come. */
  settle() {
    this.element.setAttribute("aria-busy", "false");
    if (this.#complete && !this.text) this.#note("The answer is empty.");
  }

  /** Draws the strip so that both rulers are `extent` long. */
  scaleStrip(extent) {
    this.#extent = extent;
    this.#drawStrip();
  }

  #showFigures(v2pe) {
    this.#find("h3").textContent = label(v2pe);
    this.#find("figure").hidden = false;
    this.#setFact("prompt", formatCount(v2pe.prompt_tokens, "token"));
    this.#setFact("tiles", formatNumber(v2pe.tiles));
    this.#setFact("frames", v2pe.frames ? formatNumber(v2pe.frames) : "");
    this.#setFact("last-position", formatNumber(v2pe.last_position));
    this.#setFact("seconds", `${formatNumber(v2pe.seconds)} s`);
    this.#bands = findBands(v2pe.spans, v2pe.frames);
    this.#find(".legend").replaceChildren(
      ...describeBands(this.#bands).map(({ colour, text }) => {
        const row = document.createElement("li");
        row.className = colour;
        row.append(text);
        return row;
      }),
    );
  }

  #drawStrip() {
    const place = this.#find(".strip");
    if (!this.#bands || !place.clientWidth) return;
    const scale = [this.#extent ?? this.extent, place.clientWidth];
    const spacing = findLineSpacing(...scale);
    const lines = `one line for ${spacing === 1 ? "each token" : formatCount(spacing, "token")}`;
    place.replaceChildren(drawStrip(this.#bands, ...scale));
    this.#find("figcaption").textContent = `${summarise(this.#bands)} (${lines})`;
  }

  #setFact(name, value) {
    const fact = this.#find(`[data-fact=${name}]`);
    fact.hidden = !value;
    fact.querySelector("dd").textContent = value;
  }

  #note(text, kind = "") {
    const note = this.#find(".note");
    note.hidden = false;
    note.className = `note ${kind}`;
    note.textContent = text;
  }

  #find(selector) {
    return this.element.querySelector(selector);
  }
}

function label({ rope_pos_id_version: version, rope_pos_id_stride: stride }) {
  return version === "v2pe_fix" ? `${version}, stride ${formatNumber(stride)}` : version;
}
