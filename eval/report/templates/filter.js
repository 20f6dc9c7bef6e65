// The state of the filter is part of the address (#show=wrong&find=text), so that a view can be sent to somebody.
"use strict";
const bar = document.getElementById("filter"), find = bar.querySelector("input"), count = bar.querySelector("output");
const cards = [...document.querySelectorAll(".card")];
function show(state, text) {
  let shown = 0;
  for (const card of cards) {
    const fits = (state === "all" || card.dataset.states.split(" ").includes(state)) &&
      (!text || card.textContent.toLowerCase().includes(text.toLowerCase()));
    card.hidden = !fits;
    shown += fits;
  }
  for (const button of bar.querySelectorAll("button"))
    button.setAttribute("aria-pressed", button.value === state);
  count.textContent = shown + " of " + cards.length + " questions shown";
}
function current() { return bar.querySelector("button[aria-pressed=true]")?.value ?? "all"; }
function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.has("show") && !asked.has("find")) return;
  find.value = asked.get("find") ?? "";
  const states = [...bar.querySelectorAll("button")].map(button => button.value);
  show(states.includes(asked.get("show")) ? asked.get("show") : "all", find.value);
}
function change(state) {
  show(state, find.value);
  history.replaceState(null, "", "#" + new URLSearchParams({show: state, find: find.value}));
}
bar.hidden = false;
bar.addEventListener("click", event => { if (event.target.value && event.target.type === "button")
  change(event.target.value); });
find.addEventListener("input", () => change(current()));
addEventListener("hashchange", read);
show("all", "");
read();
