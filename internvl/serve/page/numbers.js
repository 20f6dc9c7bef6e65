// Numbers as people read them.

/** With separators and at most two digits after the point: 12,345.68. */
export function formatNumber(value) {
  return value.toLocaleString("en", { maximumFractionDigits: 2 });
}

/** How far a token advances: 1, 1/16 for the inverse of a whole number, else three digits. */
export function formatStep(step) {
  const inverse = 1 / step;
  if (step < 1 && Number.isInteger(inverse)) return `1/${inverse}`;
  return String(Number(step.toPrecision(3)));
}

/** A count with its noun: 1 token, 2,048 tokens. */
export function formatCount(value, noun) {
  return `${formatNumber(value)} ${noun}${value === 1 ? "" : "s"}`;
}
