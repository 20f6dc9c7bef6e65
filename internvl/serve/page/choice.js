// The choice of positions for one answer: version, and the stride of v2pe_fix by slider or typed.

import { formatStep } from "./numbers.js";
import { clone } from "./templates.js";

export class PositionChoice {
  #tokensPerTile;
  #sliderStrides;
  #version;
  #slider;
  #typed;
  #effect;

  /**
   * @param {HTMLElement} place where the controls go
   * @param {{versions: string[], tokens_per_tile: number}} model
   * @param {{rope_pos_id_version: string, rope_pos_id_stride: number | null}} first what is chosen at first
   */
  constructor(place, model, first) {
    this.#tokensPerTile = model.tokens_per_tile;
    this.#sliderStrides = powersOfTwoTo(this.#tokensPerTile);
    place.replaceChildren(clone("choice"));
    this.#version = place.querySelector("select");
    this.#slider = place.querySelector("[type=range]");
    this.#typed = place.querySelector("[type=number]");
    this.#effect = place.querySelector("output");

    this.#version.replaceChildren(...model.versions.map((version) => new Option(version)));
    this.#version.value = first.rope_pos_id_version;
    this.#slider.max = this.#sliderStrides.length - 1;
    this.#typed.value = first.rope_pos_id_stride ?? this.#tokensPerTile;
    this.#version.onchange = this.#typed.oninput = () => this.#show();
    this.#slider.oninput = () => {
      this.#typed.value = this.#sliderStrides[this.#slider.value];
      this.#show();
    };
    this.#show();
  }

  /** Fields of the request. */
  get fields() {
    return { rope_pos_id_version: this.#version.value, rope_pos_id_stride: this.#usesStride ? this.#stride : null };
  }

  get #usesStride() {
    return this.#version.value === "v2pe_fix";
  }

  get #stride() {
    return this.#typed.valueAsNumber;
  }

  #show() {
    this.#slider.disabled = this.#typed.disabled = !this.#usesStride;
    this.#effect.textContent = this.#describe();
    if (!(this.#stride > 0)) return; // still being typed
    const distances = this.#sliderStrides.map((stride) => Math.abs(Math.log2(stride / this.#stride)));
    this.#slider.value = distances.indexOf(Math.min(...distances));
    this.#slider.setAttribute("aria-valuetext", `stride ${this.#stride}`);
  }

  #describe() {
    if (this.#version.value === "default") return "Each visual token advances 1, as text does.";
    if (!this.#usesStride) return `The server chooses the strides of ${this.#version.value}.`;
    if (!(this.#stride > 0)) return "The stride is a number above 0.";
    return `Each of a tile's ${this.#tokensPerTile} tokens advances ${formatStep(this.#stride / this.#tokensPerTile)}.`;
  }
}

/** What the slider can reach: the powers of two below `last`, and `last`. */
function powersOfTwoTo(last) {
  const strides = [];
  for (let stride = 1; stride < last; stride *= 2) strides.push(stride);
  return [...strides, last];
}
