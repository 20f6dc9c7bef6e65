"""How a report page looks and what its own script does; the policy lets no other script run."""

import base64
import hashlib

FILTERS = ("all", "wrong", "right", "failed", "empty", "differ", "unscored")

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: #777; --own: #3b82f622; --good: #16a34a;
  --bad: #e11d48; --some: #d97706; --link: #2563eb }
@media (prefers-color-scheme: dark) { :root { --dim: #9a9a9a; --link: #7aa7ff } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 88rem; padding: 0 1.25rem 4rem }
h1 { font-size: 1.6rem; margin: 1.5rem 0 .25rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
h2 code { font-size: 1.05rem } h3 { font-size: 1rem; margin: 1.25rem 0 .25rem } a { color: var(--link) }
small, .dim { color: var(--dim) } p { max-width: 60rem } ul.notes { color: var(--dim); padding-left: 1.2rem; margin: 0 }
.wide { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .65rem; text-align: right; white-space: nowrap }
th { font-weight: 600; background: var(--soft) } th:first-child, td:first-child, .left { text-align: left }
tr.own td { background: var(--own) } tr.own td:first-child { font-weight: 600; white-space: normal; min-width: 14rem }
td.name { white-space: normal; min-width: 11rem; overflow-wrap: anywhere }
i.bar { display: block; height: 3px; background: var(--soft); border-radius: 2px; overflow: hidden }
i.bar b { display: block; height: 100%; background: var(--link) }
figure { display: inline-block; margin: .5rem 1rem .5rem 0; vertical-align: top; max-width: 100%; overflow-x: auto }
figure svg { max-width: 100%; height: auto }
.tasks th { white-space: normal; vertical-align: bottom }
.tasks th, .tasks td { padding: .3rem .5rem } .tasks a { text-decoration: none }
.tasks th:nth-child(2), .tasks th:nth-child(3) { text-align: left } .tasks td[rowspan] { vertical-align: top }
details { margin: .4rem 0 } summary { cursor: pointer; color: var(--dim) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; overflow-wrap: anywhere }
dt { color: var(--dim) } dd { margin: 0 }
#filter { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .35rem; align-items: center;
  padding: .5rem 0; background: Canvas; border-bottom: 1px solid var(--line) }
#filter button, #filter input { font: inherit; padding: .15rem .7rem; border: 1px solid var(--line);
  border-radius: 1rem; background: none; color: inherit }
#filter button { cursor: pointer } #filter button[aria-pressed=true] { background: var(--link); color: Canvas }
.card { border: 1px solid var(--line); border-left: 4px solid var(--dim); border-radius: .4rem; padding: .6rem .9rem;
  margin: .7rem 0 } .card[hidden] { display: none }
.card[data-states~=right] { border-left-color: var(--good) } .card[data-states~=wrong] { border-left-color: var(--bad) }
.card header { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline }
.card header span { color: var(--dim); font-size: .85rem }
.media { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0 } .media figure { margin: 0; font-size: .8rem }
.media img { display: block; max-width: 200px; max-height: 200px; border-radius: .25rem }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .25rem 0; font: .86rem/1.45 ui-monospace, monospace;
  max-height: 22rem; overflow-y: auto }
.card pre.prompt { background: var(--soft); padding: .5rem .7rem; border-radius: .3rem }
.answers { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; align-items: baseline }
.answers pre { margin: 0 } .mark { font-weight: 600 } .is-right { color: var(--good) } .is-wrong { color: var(--bad) }
.is-part { color: var(--some) }
"""

# The state of the filter is part of the address (#show=wrong&find=text), so that a view can be sent to somebody.
SCRIPT = """
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
"""


def make_policy() -> str:
    """Content security policy of a page: pictures and style inside it, and `SCRIPT`."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
