/** Starts the page: the server's state, the images, the tabs. */

import { requestJson } from "./api.js";
import { byId } from "./dom.js";
import { readFragment } from "./fragment.js";
import { Library } from "./images/library.js";
import { acceptFiles } from "./images/sources.js";
import { Tray } from "./images/tray.js";
import { askForKey } from "./key.js";
import { notify } from "./notices.js";
import { server } from "./server.js";
import { Tabs } from "./tabs.js";

const WAITING = {
  unreachable: "The server cannot be reached. This page goes on by itself when it is back.",
  draining: "The server is shutting down and takes no new requests. This page goes on by itself when it is back.",
};

/** What all tabs share; dispatches "info" when the server describes itself anew. */
class Context extends EventTarget {
  /** The answer of /info. */
  info = null;

  /** @param {Library} library the images. */
  constructor(library) {
    super();
    this.library = library;
  }

  /** Asks the server for its description. */
  async refresh() {
    this.info = await requestJson("info");
    const { engine } = this.info;
    byId("model").textContent = engine.model;
    tabs.offer("reconstruct", engine.config.decoder_depth > 0);
    tabs.offer("anomaly", engine.config.decoder_depth > 0 || Boolean(engine.memory_bank));
    tabs.offer("classify", engine.head !== null);
    this.dispatchEvent(new Event("info"));
  }
}

const library = new Library();
const context = new Context(library);
const tabs = new Tabs(context);
new Tray(byId("tray-items"), library);
acceptFiles(library);

function showServer() {
  const { state, reason } = server;
  byId("state").dataset.state = state;
  byId("state-text").textContent = state;
  const text = { ...WAITING, loading: `The server is loading: ${reason || "it starts"}. This page goes on by itself.` };
  const lost = `The engine is lost: ${reason}. The server ends, and this page goes on by itself when it is back.`;
  notify("server", state === "lost" ? lost : (text[state] ?? ""), "hint");
}

let described = false;
async function describe() {
  showServer();
  if (server.state !== "ready") {
    described = false;
  } else if (!described) {
    described = true;
    try {
      await context.refresh();
      await tabs.show(tabs.current ?? readFragment().tab);
      notify("info");
    } catch (error) {
      described = false;
      notify("info", `The server's description cannot be read: ${error.message}`);
    }
  }
}

byId("key-button").addEventListener("click", async () => {
  if ((await askForKey()) && server.state === "ready") await describe();
});
server.addEventListener("change", describe);
addEventListener("hashchange", () => {
  const { tab } = readFragment();
  if (tabs.names.includes(tab)) tabs.show(tab); // the link that skips to the content has a fragment, too
});
showServer();
server.watch();
