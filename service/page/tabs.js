/** The tabs: each one's module is loaded when it is first shown. */

import { byId } from "./dom.js";
import { notify } from "./notices.js";
import { server } from "./server.js";

const MODULES = {
  reconstruct: () => import("./reconstruct/tab.js"),
  compare: () => import("./compare/tab.js"),
  anomaly: () => import("./anomaly/tab.js"),
  classify: () => import("./classify/tab.js"),
  status: () => import("./status/tab.js"),
};

/** Shows one tab at a time (the pattern "tabs" of WAI-ARIA: arrow keys move, and what has the focus is shown). */
export class Tabs {
  #buttons = [...document.querySelectorAll('[role="tab"]')];
  #opened = new Map();
  #context;

  /** @param {Object} context what the tabs share: `info`, `library`, and `usesTray(tab)`. */
  constructor(context) {
    this.#context = context;
    for (const button of this.#buttons) button.addEventListener("click", () => this.show(button.dataset.tab));
    byId("tabs").addEventListener("keydown", (event) => this.#move(event));
  }

  /** The names of the tabs that can be shown. */
  get names() {
    return this.#visible.map((button) => button.dataset.tab);
  }

  get #visible() {
    return this.#buttons.filter((button) => !button.hidden);
  }

  /** Hides or shows the button of a tab. */
  offer(name, offered) {
    this.#buttons.find((button) => button.dataset.tab === name).hidden = !offered;
  }

  /** Shows a tab, or the first one if there is none of that name. */
  async show(name) {
    const chosen = this.names.includes(name) ? name : this.names[0];
    if (chosen === this.current && this.#opened.has(chosen)) return;
    this.#opened.get(this.current)?.then((tab) => tab.hide?.(), () => {});
    this.current = chosen;
    for (const button of this.#buttons) {
      const selected = button.dataset.tab === chosen;
      button.setAttribute("aria-selected", selected);
      button.tabIndex = selected ? 0 : -1;
      byId(`panel-${button.dataset.tab}`).hidden = !selected;
    }
    byId("tray").hidden = chosen === "status";
    notify("tab");
    if (!this.#opened.has(chosen)) {
      this.#opened.set(chosen, load(chosen).then((module) => module.open(byId(`panel-${chosen}`), this.#context)));
    }
    try {
      const tab = await this.#opened.get(chosen);
      if (this.current === chosen) tab.show();
    } catch (error) {
      this.#opened.delete(chosen);
      notify("tab", `This tab cannot be loaded: ${error.message}`);
    }
  }

  #move(event) {
    const buttons = this.#visible;
    const at = buttons.indexOf(document.activeElement);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: -1 }[event.key];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const button = buttons.at(to % buttons.length);
    button.focus();
    this.show(button.dataset.tab);
  }
}

/** The module of a tab. Where the server is gone, it is waited for. */
async function load(name) {
  try {
    return await MODULES[name]();
  } catch {
    await server.check();
    await server.whenReady();
    return MODULES[name]();
  }
}
