// The chat page: what a person writes becomes turns, turns become requests. An unanswered question goes back into its
// field, with its pictures.

import { Attachments } from "./attachments.js";
import { PositionChoice } from "./choice.js";
import { messagesUntil, Turn } from "./conversation.js";
import { Server } from "./server.js";

const WIDE = "(min-width: 900px)";
const NEAR_END_PX = 150;

const [form, question, files, conversation, settings, compare, stop] = [
  "ask", "question", "files", "conversation", "settings", "compare", "stop",
].map((id) => document.getElementById(id));

const server = new Server(askForKey);
const attachments = new Attachments(document.getElementById("attachments"), report);

let model = null;
let choices = [];
let turns = [];
let running = null; // the AbortController of the answers that are coming

async function start() {
  settings.open = matchMedia(WIDE).matches;
  try {
    await loadModel();
  } catch (error) {
    report(error.message);
  }
}

async function loadModel() {
  model = await server.model();
  const { v2pe } = model;
  document.getElementById("model").textContent = model.id;
  document.getElementById("max-tiles").value = v2pe.max_tiles;
  const plain = v2pe.rope_pos_id_version === "default" || v2pe.rope_pos_id_stride === v2pe.tokens_per_tile;
  const other = plain ? Math.max(1, v2pe.tokens_per_tile / 16) : v2pe.tokens_per_tile;
  choices = [
    new PositionChoice(controlsOf("first-choice"), v2pe, v2pe),
    new PositionChoice(controlsOf("second-choice"), v2pe, { rope_pos_id_version: "v2pe_fix", rope_pos_id_stride: other }),
  ];
}

async function ask() {
  if (running) return;
  begin();
  try {
    if (!model) await loadModel();
    const media = await attachments.take();
    const words = question.value.trim();
    if (!words && !media.length) return;
    question.value = "";
    turns.at(-1)?.answers.forEach(({ retryButton }) => retryButton.remove());
    const turn = new Turn(words, media, activeChoices());
    turns.push(turn);
    turn.answers.forEach((answer, column) => (answer.retryButton.onclick = () => retry(turn, column)));
    conversation.append(turn.element);
    turn.element.scrollIntoView({ block: "end" });
    await Promise.all(turn.answers.map((_, column) => receive(turn, column)));
    if (!turn.isAnswered) giveBack(turn);
  } catch (error) {
    report(error.message);
  } finally {
    end();
  }
}

async function retry(turn, column) {
  if (running) return;
  begin();
  turn.answers[column].restart();
  await receive(turn, column);
  if (!turn.isAnswered) giveBack(turn);
  end();
}

/** Streams the answer of one column of the last turn. */
async function receive(turn, column) {
  const answer = turn.answers[column];
  const request = {
    model: model.id,
    messages: messagesUntil(turns, column),
    ...numberField("max_tiles", "max-tiles"),
    ...numberField("max_tokens", "max-tokens"),
    ...answer.positions,
  };
  try {
    for await (const part of server.answer(request, running.signal)) {
      const atEnd = distanceToEnd() < NEAR_END_PX;
      answer.take(part);
      if (part.v2pe) turn.scaleStrips();
      if (atEnd) scrollTo({ top: document.body.scrollHeight });
    }
  } catch (error) {
    answer.fail(error.name === "AbortError" ? "Stopped." : error.message);
  }
  answer.settle();
}

/** Takes an unanswered question out of the conversation and lets it be edited and asked again. */
function giveBack(turn) {
  if (!turns.includes(turn)) return; // a new chat began
  turns.pop();
  turn.element.remove();
  question.value = [turn.question, question.value].filter(Boolean).join("\n\n");
  attachments.restore(turn.attachments);
  report([...new Set(turn.answers.map(({ problem }) => problem))].join(" "));
}

function begin() {
  running = new AbortController();
  document.getElementById("problem").textContent = "";
  showRunning(true, "Answering");
}

function end() {
  running = null;
  showRunning(false, "");
  question.focus();
}

function showRunning(isRunning, status) {
  document.getElementById("status").textContent = status;
  document.getElementById("welcome").hidden = turns.length > 0 || isRunning;
  document.getElementById("send").hidden = isRunning;
  stop.hidden = !isRunning;
  document.querySelectorAll(".retry").forEach((button) => (button.disabled = isRunning));
}

function beginNewChat() {
  running?.abort();
  turns = [];
  conversation.replaceChildren();
  showRunning(false, "");
  question.focus();
}

function report(problem) {
  document.getElementById("problem").append(problem, document.createElement("br"));
}

function activeChoices() {
  return (compare.checked ? choices : choices.slice(0, 1)).map(({ fields }) => fields);
}

function controlsOf(id) {
  return document.querySelector(`#${id} .controls`);
}

function numberField(name, id) {
  const { value } = document.getElementById(id);
  return value ? { [name]: Number(value) } : {};
}

function distanceToEnd() {
  return document.body.scrollHeight - scrollY - innerHeight;
}

let keyAsked = null; // answers that are compared share one dialog

function askForKey(reason) {
  keyAsked ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const field = document.getElementById("key");
    document.getElementById("key-reason").textContent = reason;
    field.value = dialog.returnValue = "";
    dialog.addEventListener("close", () => {
      keyAsked = null;
      resolve(dialog.returnValue === "use" ? field.value : null);
    }, { once: true });
    dialog.showModal();
  });
  return keyAsked;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
files.addEventListener("change", () => {
  attachments.add(files.files);
  files.value = "";
});
document.addEventListener("paste", ({ clipboardData }) => attachments.add(clipboardData.files));
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return; // dragged text goes where it is dropped
    event.preventDefault();
    document.body.classList.toggle("dropping", name === "dragover");
    if (name === "drop") attachments.add(event.dataTransfer.files);
  });
}
stop.addEventListener("click", () => running?.abort());
document.getElementById("new-chat").addEventListener("click", beginNewChat);
compare.addEventListener("change", () => {
  const second = document.getElementById("second-choice");
  second.hidden = second.disabled = !compare.checked;
});
settings.addEventListener("invalid", () => (settings.open = true), true); // a closed field cannot be pointed at

start();
