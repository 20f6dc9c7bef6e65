// The conversation: turns of one question with one answer, or with two that are compared.

import { Answer } from "./answer.js";
import { drawAttachment } from "./attachments.js";
import { clone } from "./templates.js";

export class Turn {
  /**
   * @param {string} question
   * @param {{name: string, kind: "image" | "video", url: string}[]} attachments
   * @param {{rope_pos_id_version: string, rope_pos_id_stride: number | null}[]} choices positions of each answer
   */
  constructor(question, attachments, choices) {
    this.question = question;
    this.attachments = attachments;
    this.answers = choices.map((positions) => new Answer(positions));
    this.element = clone("turn");
    this.element.querySelector("h2").textContent = question;
    this.element.querySelector(".thumbnails").append(...attachments.map(drawAttachment));
    this.element.querySelector(".answers").append(...this.answers.map(({ element }) => element));
  }

  get isAnswered() {
    return this.answers.some(({ isUseful }) => isUseful);
  }

  /** The question as a message; pictures come before the words. */
  get message() {
    const media = this.attachments.map(({ kind, url }) => ({ type: `${kind}_url`, [`${kind}_url`]: { url } }));
    const words = this.question ? [{ type: "text", text: this.question }] : [];
    return { role: "user", content: [...media, ...words] };
  }

  /** Question and answer as messages; where this turn has no answer in that column, the one it has. */
  messages(column) {
    const answer = [this.answers[column], ...this.answers].find((candidate) => candidate?.isUseful);
    return [this.message, { role: "assistant", content: answer.text }];
  }

  /** Draws all strips to one scale, so that the answers can be compared. */
  scaleStrips() {
    const extent = Math.max(...this.answers.map((answer) => answer.extent));
    this.answers.forEach((answer) => answer.scaleStrip(extent));
  }
}

/** Messages that ask the last turn in one column: all earlier questions with that column's answers. */
export function messagesUntil(turns, column) {
  return [...turns.slice(0, -1).flatMap((turn) => turn.messages(column)), turns.at(-1).message];
}
