/** The state of the server, as /livez tells it: the page waits while the server loads, and notices when it is gone. */

const POLL_MS = 1000;
const POLL_READY_MS = 5000;

/** Dispatches "change" when the state or its reason changes. */
class Server extends EventTarget {
  /** "connecting", "unreachable", or a state of the server: "loading", "ready", "draining", "lost". */
  state = "connecting";
  /** The step of loading that runs, or why the engine is lost. */
  reason = "";
  #timer = 0;

  /** Begins to ask the server for its state, now and then. */
  watch() {
    document.addEventListener("visibilitychange", () => document.hidden || this.check());
    this.check();
  }

  /** Asks for the state now. */
  async check() {
    clearTimeout(this.#timer);
    try {
      const response = await fetch("livez", { cache: "no-store", signal: AbortSignal.timeout(5000) });
      const { state, reason } = await response.json();
      this.#set(state, reason);
    } catch {
      this.#set("unreachable", "");
    }
    clearTimeout(this.#timer);
    const pause = this.state === "ready" ? POLL_READY_MS : POLL_MS;
    if (!document.hidden || this.state !== "ready") this.#timer = setTimeout(() => this.check(), pause);
  }

  /** Waits until the server accepts requests; rejects when `signal` aborts. */
  whenReady(signal) {
    return new Promise((resolve, reject) => {
      const look = () => {
        if (this.state !== "ready" && !signal?.aborted) return;
        this.removeEventListener("change", look);
        signal?.removeEventListener("abort", look);
        if (signal?.aborted) reject(signal.reason);
        else resolve();
      };
      this.addEventListener("change", look);
      signal?.addEventListener("abort", look);
      look();
    });
  }

  #set(state, reason) {
    if (state === this.state && reason === this.reason) return;
    this.state = state;
    this.reason = reason;
    this.dispatchEvent(new Event("change"));
  }
}

export const server = new Server();
