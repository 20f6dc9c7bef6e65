// Pictures and videos of the question that is being written: chosen, dropped or pasted, shown with a remove button.

import { clone } from "./templates.js";

export class Attachments {
  /** @type {{name: string, kind: "image" | "video", url: string}[]} `url` is a data URL, as it will be sent */
  #items = [];
  #list;
  #report;
  #reading = Promise.resolve();

  /**
   * @param {HTMLElement} list where the thumbnails go
   * @param {(problem: string) => void} report told about each file that is left out
   */
  constructor(list, report) {
    this.#list = list;
    this.#report = report;
  }

  /** Reads files into the question, in the order they came. Those that are no picture or video are left out. */
  add(files) {
    const chosen = [...files]; // the browser empties its own list after the event
    this.#reading = this.#reading.then(async () => {
      const items = await Promise.all(chosen.map((file) => this.#read(file)));
      this.#set([...this.#items, ...items.filter(Boolean)]);
    });
  }

  /** Takes back what an unanswered question had, before what was added since. */
  restore(items) {
    this.#set([...items, ...this.#items]);
  }

  /** Hands out all attachments, once they are read, and starts again with none. */
  async take() {
    await this.#reading;
    const items = this.#items;
    this.#set([]);
    return items;
  }

  async #read(file) {
    const kind = file.type.split("/")[0];
    if (kind !== "image" && kind !== "video") {
      this.#report(`${file.name} is neither a picture nor a video.`);
      return null;
    }
    try {
      return { name: file.name, kind, url: await readDataUrl(file) };
    } catch {
      this.#report(`${file.name} (${Math.round(file.size / 1e6)} MB) cannot be read here.`);
      return null;
    }
  }

  #set(items) {
    this.#items = items;
    this.#list.replaceChildren(...items.map((item) => this.#drawRemovable(item)));
  }

  #drawRemovable(item) {
    const remove = clone("remove");
    remove.setAttribute("aria-label", `Remove ${item.name}`);
    remove.onclick = () => this.#set(this.#items.filter((other) => other !== item));
    const thumbnail = drawAttachment(item);
    thumbnail.append(remove);
    return thumbnail;
  }
}

/** A list item with the picture, or with the video as a small player. */
export function drawAttachment({ name, kind, url }) {
  const item = document.createElement("li");
  const view = document.createElement(kind === "image" ? "img" : "video");
  view.src = url;
  view.title = name;
  view.setAttribute(kind === "image" ? "alt" : "aria-label", name);
  view.controls = true; // of a video; nothing to a picture
  item.append(view);
  return item;
}

function readDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
