/** The row of images from which the tabs take theirs. */

import { make } from "../dom.js";
import { caption } from "./caption.js";

/** Shows the library; a click selects an image. */
export class Tray {
  #list;
  #library;

  constructor(list, library) {
    this.#list = list;
    this.#library = library;
    library.addEventListener("change", ({ detail }) => this.#fill(detail.added));
    library.addEventListener("select", () => this.#mark());
    library.addEventListener("thumbnail", ({ detail }) => this.#draw(detail));
    this.#fill([]);
  }

  #fill(added) {
    const focused = document.activeElement?.dataset?.image;
    this.#list.replaceChildren(...this.#library.items.map((item) => this.#entry(item)));
    this.#mark();
    if (focused) this.#button(focused)?.focus();
    if (added.length) this.#button(added[0].id).scrollIntoView({ block: "nearest", inline: "center" });
  }

  #entry(item) {
    const button = make(
      "button",
      { type: "button", class: "thumbnail", "data-image": item.id, title: item.name, "aria-label": item.name, click: () => this.#library.select(item.id) },
      picture(item),
      caption(item.name),
    );
    if (item.example) return make("li", {}, button);
    const remove = make(
      "button",
      { type: "button", class: "remove", "aria-label": `Remove ${item.name}`, click: () => this.#library.remove(item.id) },
      "×",
    );
    return make("li", {}, button, remove);
  }

  #draw(item) {
    this.#button(item.id)?.firstChild.replaceWith(picture(item));
  }

  #mark() {
    for (const button of this.#list.querySelectorAll(".thumbnail")) {
      button.setAttribute("aria-pressed", button.dataset.image === this.#library.selected.id);
    }
  }

  #button(id) {
    return this.#list.querySelector(`[data-image="${id}"]`);
  }
}

/** The thumbnail of an image; a question mark where this browser cannot read it. */
function picture(item) {
  if (item.thumbnail) return make("img", { src: item.thumbnail, alt: "", width: 56, height: 56 });
  return make("span", { class: "blank", "aria-hidden": "true" }, item.thumbnail === null ? "?" : "");
}
