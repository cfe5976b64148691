/** The tab Reconstruct: removes patches of a photograph and shows what the decoder makes of the rest. */

import { announce, byId } from "../dom.js";
import { flushFragment, readFragment, writeFragment } from "../fragment.js";
import { notify } from "../notices.js";
import { describeError, describeWait } from "../picture.js";
import { choiceFromParameters, choiceToParameters, FIRST_CHOICE } from "./choice.js";
import { Controls } from "./controls.js";
import { PatchGrid, SMALLEST_TARGET } from "./grid.js";
import { History } from "./history.js";
import { Latest } from "./latest.js";
import { countRemoved, equal } from "./mask.js";
import { curlCommand } from "./query.js";
import { Session } from "./session.js";
import { Spread } from "./spread.js";
import { Stage } from "./stage.js";

const SLOW_MS = 150;
const ANNOUNCE_MS = 700;

/** Fills the panel; see `Tabs`. */
export function open(panel, context) {
  return new ReconstructTab(panel, context);
}

class ReconstructTab {
  #panel;
  #context;
  #grid = new PatchGrid(byId("grid"));
  #controls = new Controls(this.#grid, FIRST_CHOICE);
  #stage = new Stage();
  #spread = new Spread(() => ({ item: this.#item, choice: this.#history.present }));
  #history = new History(FIRST_CHOICE);
  #latest = new Latest((job, signal) => this.#run(job, signal));
  #sessions = new WeakMap();
  #isShown = false;
  #slow = 0;
  #announcement = 0;

  constructor(panel, context) {
    this.#panel = panel;
    this.#context = context;
    this.#listen();
    this.#describe();
    this.#readFragment();
  }

  /** The tab is shown. */
  show() {
    this.#isShown = true;
    this.#update();
  }

  /** Another tab is shown. */
  hide() {
    this.#isShown = false;
    this.#latest.cancel();
  }

  get #item() {
    return this.#context.library.selected;
  }

  get #session() {
    const { preprocessing } = this.#context.info.engine;
    if (!this.#sessions.has(this.#item)) this.#sessions.set(this.#item, new Session(this.#item, preprocessing));
    return this.#sessions.get(this.#item);
  }

  #listen() {
    const { library } = this.#context;
    this.#context.addEventListener("info", () => {
      this.#sessions = new WeakMap();
      this.#describe();
      this.#update();
    });
    library.addEventListener("select", () => {
      const choice = this.#controls.choiceForNewImage(this.#history.present);
      if (choice !== this.#history.present) this.#history.push(choice);
      this.#update();
    });
    this.#controls.addEventListener("choose", ({ detail }) => this.#choose(detail.choice, detail.gesture));
    this.#controls.addEventListener("settle", () => this.#history.endGesture());
    this.#controls.addEventListener("surprise", () => {
      const others = library.items.filter((item) => item !== library.selected);
      library.select(others[Math.floor(Math.random() * others.length)].id);
    });
    this.#grid.addEventListener("edit", ({ detail }) => this.#paint(detail));
    for (const step of ["undo", "redo"]) {
      this.#controls.addEventListener(step, () => {
        this.#history[step]();
        this.#update();
      });
    }
    this.#panel.addEventListener("keydown", (event) => this.#pressShortcut(event));
    this.#stage.addEventListener("view", () => this.#isShown && this.#write());
    byId("copy-curl").addEventListener("click", () => copyText(byId("curl").textContent, byId("copy-curl")));
    byId("copy-link").addEventListener("click", () => {
      flushFragment();
      copyText(location.href, byId("copy-link"));
    });
    byId("zoom").addEventListener("change", () => this.#fit());
    new ResizeObserver(() => this.#fit()).observe(byId("editor"));
    addEventListener("hashchange", () => {
      if (readFragment().tab !== "reconstruct") return;
      this.#readFragment();
      this.#update();
    });
  }

  /** Takes the size of the grid from the server's description; a mask of another size is dropped. */
  #describe() {
    const { image_size: size, patch_size: patch } = this.#context.info.engine.config;
    this.#grid.resize(size / patch, size / patch);
    byId("editor").style.setProperty("--grid-columns", size / patch);
    const { present } = this.#history;
    if (present.kind === "painted" && present.mask.length !== this.#grid.mask.length) this.#history = new History(FIRST_CHOICE);
    this.#fit();
  }

  #readFragment() {
    const { parameters } = readFragment();
    if (![...parameters.keys()].length) return;
    this.#context.library.select(parameters.get("image"));
    this.#stage.choose(parameters.get("view") ?? this.#stage.view);
    this.#history.push(choiceFromParameters(parameters, FIRST_CHOICE, this.#grid.mask.length));
  }

  #choose(choice, gesture = "") {
    this.#history.push(choice, gesture);
    this.#update();
  }

  /** Takes a mask that was painted; all strokes of one gesture are one step of the history. */
  #paint({ mask, final }) {
    const { present } = this.#history;
    if (present.kind !== "painted" || !equal(present.mask, mask)) this.#choose({ kind: "painted", mask }, "paint");
    if (final) this.#history.endGesture();
  }

  /** Shows the present choice and has it reconstructed. */
  #update() {
    const choice = this.#history.present;
    const count = this.#grid.mask.length;
    this.#controls.show(choice, count, this.#history);
    this.#spread.reset(choice);
    byId("curl").textContent = curlCommand(choice, this.#stage.view, this.#item.name);
    byId("image-name").textContent = this.#item.name;
    if (!this.#isShown) return;
    this.#write();
    if (choice.kind === "painted") this.#grid.mask = choice.mask;
    const removed = choice.kind === "painted" ? countRemoved(choice.mask) : 1;
    const impossible = { 0: "Remove at least one patch.", [count]: "Leave at least one patch visible." }[removed];
    byId("mask-hint").textContent = impossible ?? "";
    byId("copy-curl").disabled = impossible !== undefined;
    if (impossible) {
      this.#latest.cancel();
      this.#stage.clear();
      const { original } = this.#session;
      drawOriginal(original);
      if (original) return;
    }
    this.#slow ||= setTimeout(() => this.#panel.classList.add("waiting"), SLOW_MS);
    const job = { subject: this.#item, session: this.#session, choice, asked: performance.now() };
    // The image itself, to paint on, comes with any reconstruction.
    this.#latest.submit(impossible ? { ...job, choice: FIRST_CHOICE, isOriginalAlone: true } : job);
  }

  async #run({ subject, session, choice, asked, isOriginalAlone }, signal) {
    try {
      const wait = (seconds) => notify("queue", describeWait(seconds), "hint");
      const result = await session.reconstruct(choice, signal, wait);
      if (signal.aborted || subject !== this.#item) return;
      if (isOriginalAlone) {
        drawOriginal(result.original);
        return;
      }
      this.#show(result, choice);
      performance.measure("move to picture", { start: asked, detail: { removed: result.removed } });
      notify("reconstruct");
    } catch (error) {
      if (signal.aborted || subject !== this.#item) return;
      this.#stage.clear();
      drawOriginal(null);
      notify("reconstruct", describeError(error, subject));
    } finally {
      clearTimeout(this.#slow);
      this.#slow = 0;
      this.#panel.classList.remove("waiting");
    }
  }

  #show(result, choice) {
    drawOriginal(result.original);
    if (choice.kind === "drawn" && this.#history.present.kind === "drawn") this.#grid.mask = result.mask;
    this.#stage.show(result);
    clearTimeout(this.#announcement);
    const told = `${result.removed} of ${result.mask.length} patches removed, loss ${result.loss.toFixed(3)}`;
    this.#announcement = setTimeout(() => announce(told), ANNOUNCE_MS);
  }

  #write() {
    const image = this.#item.example ? { image: this.#item.id } : {};
    const parameters = { ...image, ...choiceToParameters(this.#history.present), view: this.#stage.view };
    writeFragment("reconstruct", new URLSearchParams(parameters));
    byId("curl").textContent = curlCommand(this.#history.present, this.#stage.view, this.#item.name);
  }

  /** Offers to enlarge cells that are too small for a finger. */
  #fit() {
    const columns = Math.sqrt(this.#grid.mask.length);
    const isSmall = byId("editor").clientWidth / columns < SMALLEST_TARGET;
    byId("zoom-choice").hidden = !isSmall;
    byId("editor").classList.toggle("zoomed", isSmall && byId("zoom").checked);
  }

  #pressShortcut(event) {
    if (!(event.ctrlKey || event.metaKey) || event.target.matches("input[type=text]")) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    this.#history[key === "y" || event.shiftKey ? "redo" : "undo"]();
    this.#update();
  }
}

/** Draws the picture below the grid of patches, or none. */
function drawOriginal(bitmap) {
  const canvas = byId("editor-picture");
  if (bitmap) canvas.width = canvas.height = bitmap.width;
  const drawing = canvas.getContext("2d");
  if (bitmap) drawing.drawImage(bitmap, 0, 0);
  else drawing.clearRect(0, 0, canvas.width, canvas.height);
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.classList.add("done");
    announce("Copied");
    setTimeout(() => button.classList.remove("done"), 1500);
  } catch {
    notify("copy", `This browser does not let the page copy. The text is: ${text}`, "hint");
  }
}
