// Copies of the page's <template> elements.

/** The one element of the template with this id, fresh. */
export function clone(id) {
  return document.getElementById(id).content.firstElementChild.cloneNode(true);
}
