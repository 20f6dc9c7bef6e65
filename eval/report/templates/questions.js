// Questions stay text until a reader reaches them, so that a page can hold 20,000. What is shown is part of the address
// (#show=wrong&length=8k-16k&find=text), so that a view can be sent to somebody.
"use strict";
const STEP = 20, ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"};
const bar = document.getElementById("filter"), find = bar.querySelector("input"), count = bar.querySelector("output");
const choices = [...bar.querySelectorAll("select")], buttons = [...bar.querySelectorAll("button")];
const readText = html => html.replace(/<\/?mark>/g, "").replace(/<[^>]*>/g, " ").toLowerCase();
const escape = text => text.replace(/[&<>"']/g, sign => ESCAPES[sign]);

class Questions {
  constructor(box) {
    this.box = box;
    const texts = [...box.querySelectorAll(".card")].map(card => card.outerHTML);
    this.cards = [...texts, ...JSON.parse(box.querySelector("script").textContent)].map(html => ({html}));
    for (const card of this.cards)
      for (const [, name, value] of card.html.slice(0, card.html.indexOf(">")).matchAll(/data-(\w+)="([^"]*)"/g))
        card[name] = value;
    this.end = document.createElement("i");
  }
  show(view) {
    const words = escape(view.find).toLowerCase();
    this.fitting = this.cards.filter(card =>
      (view.show === "all" || card.states.split(" ").includes(view.show)) &&
      ["length", "depth"].every(name => !view[name] || card[name] === escape(view[name])) &&
      (!words || (card.text ??= readText(card.html)).includes(words)));
    this.box.closest("section").hidden = view.isPart && !this.fitting.length;
    this.box.replaceChildren(this.end);
    this.next = 0;
    this.grow();
    return this.fitting.length;
  }
  grow() {
    const template = document.createElement("template");
    template.innerHTML = this.fitting.slice(this.next, this.next += STEP).map(card => card.html).join("");
    this.end.before(template.content);
    observer.unobserve(this.end);
    if (this.next < this.fitting.length) observer.observe(this.end);
  }
}

const observer = new IntersectionObserver(entries => {
  for (const entry of entries)
    if (entry.isIntersecting) lists.find(list => list.end === entry.target).grow();
}, {rootMargin: "1500px"});
const lists = [...document.querySelectorAll(".questions")].map(box => new Questions(box));
const total = lists.reduce((sum, list) => sum + list.cards.length, 0);

function read() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const view = {show: asked.get("show") ?? "all", find: asked.get("find") ?? ""};
  if (!buttons.some(button => button.value === view.show)) view.show = "all";
  for (const choice of choices) {
    choice.value = asked.get(choice.name) ?? "";
    view[choice.name] = choice.value ||= "";
  }
  if (find.value !== view.find) find.value = view.find;
  for (const button of buttons) button.setAttribute("aria-pressed", button.value === view.show);
  view.isPart = view.show !== "all" || Object.keys(view).some(name => name !== "show" && view[name]);
  document.body.classList.toggle("part", view.isPart);
  const shown = lists.reduce((sum, list) => sum + list.show(view), 0);
  count.textContent = `${shown.toLocaleString("en")} of ${total.toLocaleString("en")} questions`;
}
function change() {
  const show = buttons.find(button => button.getAttribute("aria-pressed") === "true").value;
  const view = [["show", show], ...choices.map(choice => [choice.name, choice.value]), ["find", find.value]];
  history.replaceState(null, "", "#" + new URLSearchParams(view.filter(([, value]) => value)));
  read();
}
let pause;
bar.hidden = false;
for (const button of buttons) button.addEventListener("click", () => {
  for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  change();
});
for (const choice of choices) choice.addEventListener("change", change);
find.addEventListener("input", () => { clearTimeout(pause); pause = setTimeout(change, 200); });
addEventListener("hashchange", () => { if (/[#&](show|find|length|depth)=/.test(location.hash)) read(); });
read();
