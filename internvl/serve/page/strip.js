// The strip beside an answer: a ruler of tokens above a ruler of positions, both to one scale. Bands join the tokens of
// a picture, or of text between pictures, to the positions they take; thin lines follow single tokens.
//
//     tokens     |--text--|------------- picture -------------|--text--|
//                 \        \ _________________________________/       /
//     positions  |--text--|-----|--text--|

import { formatCount, formatNumber, formatStep } from "./numbers.js";

const MARGIN = { left: 66, right: 14 };
const TOP = { axis: 24, bar: 26, end: 40 };
const BOTTOM = { bar: 88, axis: 104 };
const HEIGHT = 124;
const LABEL_PX = 56;
const LINE_PX = 10;
const NUM_COLOURS = 6;
const MOST_IN_LEGEND = 6;

/**
 * Runs of tokens with what they cover on both rulers. A token covers the way to its position from the one before, so
 * that the row of text 0, 1, 2 covers 0 to 3.
 *
 * @param {{kind: string, tokens: number, start: number, step: number}[]} spans of a prompt, in order
 * @param {number} frames how many of the pictures are frames of videos
 */
export function findBands(spans, frames) {
  const numVisual = spans.filter(({ kind }) => kind === "visual").length;
  const noun = frames === 0 ? "Picture" : frames === numVisual ? "Frame" : "Picture or frame";
  let token = 0;
  let visual = 0;
  return spans.map(({ kind, tokens, start, step }) => {
    const firstToken = token;
    token += tokens;
    const from = start - step + 1;
    const colour = kind === "text" ? "words" : `visual-${visual++ % NUM_COLOURS}`;
    const name = kind === "text" ? "Text" : `${noun} ${visual}`;
    return { kind, name, colour, step, tokens: [firstToken, token], positions: [from, from + tokens * step] };
  });
}

/** The longer one of both rulers, in tokens or positions. */
export function findExtent(bands) {
  return Math.max(...bands.map(({ tokens, positions }) => Math.max(tokens[1], positions[1])));
}

/**
 * The strip as an SVG element.
 *
 * @param {ReturnType<typeof findBands>} bands
 * @param {number} extent what both rulers are scaled to; strips with one extent can be compared
 * @param {number} width in CSS pixels
 */
export function drawStrip(bands, extent, width) {
  const perUnit = pixelsPerUnit(extent, width);
  const x = (value) => MARGIN.left + value * perUnit;
  const last = bands.at(-1);
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": summarise(bands) }, [
    ...bands.map((band) => drawBand(band, x)),
    svg("path", { class: "advances", d: followTokens(bands, x, findLineSpacing(extent, width)) }),
    ...drawRuler("tokens", last.tokens[1], x, TOP.axis, -1, perUnit),
    ...drawRuler("positions", last.positions[1], x, BOTTOM.axis, 1, perUnit),
  ]);
}

/** How many tokens there are from one line to the next. */
export function findLineSpacing(extent, width) {
  return roundUp(LINE_PX / pixelsPerUnit(extent, width));
}

/** Rows of the legend: `{colour, text}` for text and each picture, or for all pictures together if they are many. */
export function describeBands(bands) {
  const text = bands.filter(({ kind }) => kind === "text");
  const visual = bands.filter(({ kind }) => kind === "visual");
  const rows = [{ colour: "words", text: describe("Text", text) }];
  if (visual.length <= MOST_IN_LEGEND) {
    return [...rows, ...visual.map((band) => ({ colour: band.colour, text: describe(band.name, [band]) }))];
  }
  return [...rows, { colour: "visual-all", text: describe(`${visual.length} pictures or frames`, visual) }];
}

/** One sentence: how many positions the tokens of a prompt take. */
export function summarise(bands) {
  const { tokens, positions } = bands.at(-1);
  return `${formatCount(tokens[1], "token")} on ${formatCount(positions[1], "position")}`;
}

function pixelsPerUnit(extent, width) {
  return (width - MARGIN.left - MARGIN.right) / extent;
}

function describe(name, bands) {
  const tokens = bands.reduce((sum, band) => sum + band.tokens[1] - band.tokens[0], 0);
  const positions = bands.reduce((sum, band) => sum + band.positions[1] - band.positions[0], 0);
  const steps = new Set(bands.map(({ step }) => formatStep(step)));
  const each = steps.size === 1 ? ` × ${[...steps]}` : "";
  return `${name}: ${formatCount(tokens, "token")}${each} = ${formatCount(positions, "position")}`;
}

function drawBand(band, x) {
  const [t0, t1] = band.tokens.map(x);
  const [p0, p1] = band.positions.map(x);
  const { bar: top, end } = TOP;
  const { bar: bottom, axis } = BOTTOM;
  return svg("g", { class: `band ${band.colour}` }, [
    svg("title", {}, [`${describe(band.name, [band])}: ${band.positions.map(formatNumber).join(" to ")}`]),
    svg("path", { class: "bar", d: `M${t0} ${top}H${t1}V${end}H${t0}Z M${p0} ${bottom}H${p1}V${axis - 2}H${p0}Z` }),
    svg("path", { class: "joint", d: `M${t0} ${end}H${t1}L${p1} ${bottom}H${p0}Z` }),
  ]);
}

/** A path from every `spacing`th token to its position. */
function followTokens(bands, x, spacing) {
  const lines = [];
  for (const { tokens, positions, step } of bands) {
    for (let token = Math.ceil(tokens[0] / spacing) * spacing; token < tokens[1]; token += spacing) {
      const position = positions[0] + (token - tokens[0]) * step;
      lines.push(`M${x(token)} ${TOP.end}L${x(position)} ${BOTTOM.bar}`);
    }
  }
  return lines.join("");
}

function drawRuler(name, length, x, y, direction, perUnit) {
  const spacing = roundUp(LABEL_PX / perUnit);
  const marks = [0];
  for (let mark = spacing; mark < length - spacing / 2; mark += spacing) marks.push(mark);
  marks.push(length);
  const labelY = direction < 0 ? y - 8 : y + 18;
  return [
    svg("text", { x: 0, y: direction < 0 ? y + 12 : y - 4 }, [name]),
    svg("path", { class: "ruler", d: `M${x(0)} ${y}H${x(length)}${marks.map((m) => `M${x(m)} ${y}v${5 * direction}`).join("")}` }),
    ...marks.map((mark) => svg("text", { class: "mark", x: x(mark), y: labelY }, [formatNumber(mark)])),
  ];
}

/** The next of 1, 2, 5, 10, 20, 50, ... that is not below `value`. */
function roundUp(value) {
  const power = 10 ** Math.max(0, Math.floor(Math.log10(value)));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= value);
}

function svg(name, attributes, children = []) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
