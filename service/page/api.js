/** Requests to the server. They wait where the server asks for it, and fail with its own words. */

import { askForKey, currentKey, keyHeaders } from "./key.js";
import { server } from "./server.js";

const ATTEMPTS = 4;
/** The time before which the server wants no requests, in milliseconds of performance.now(). */
let busyUntil = 0;

/** An error that the server has answered. */
export class RequestError extends Error {
  /**
   * @param {number} status HTTP status.
   * @param {string} code the error's code, as "undecodable_image".
   * @param {string} message a sentence for people.
   * @param {Object} details for example the index of the image.
   * @param {number} retryAfter seconds to wait before the next attempt; 0 if the server names none.
   */
  constructor(status, code, message, details, retryAfter) {
    super(message);
    this.status = status;
    this.code = code;
    this.details = details;
    this.retryAfter = retryAfter;
  }
}

/**
 * Sends a request, and sends it again after what passes: a missing key, a full queue, a server that loads or is gone.
 * @param {string} path relative to the page, with its query.
 * @param {Object} options `method`, `body`, `headers` and `signal` as of fetch; `onWait(seconds)` is told how long the server
 *     asks to wait, and 0 when the wait is over.
 * @returns {Promise<Response>} a successful response.
 * @throws {RequestError} the server refuses the request.
 */
export async function request(path, { onWait = () => {}, ...options } = {}) {
  for (let failures = 0; ; ) {
    await waitUntil(busyUntil, options.signal, onWait);
    const key = currentKey();
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...options.headers, ...keyHeaders() } });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      if (++failures === ATTEMPTS) throw new Error("the connection was closed before the server had answered");
      await server.check();
      await server.whenReady(options.signal);
      continue;
    }
    if (response.ok) return response;
    const error = await readError(response);
    if (error.status === 401) {
      if (currentKey() === key && !(await askForKey())) throw error;
    } else if (error.status === 429) {
      busyUntil = performance.now() + 1000 * (error.retryAfter || 1);
    } else if (error.status === 503) {
      await server.check();
      // What stands before the server may refuse a request, too: its state then tells nothing.
      if (server.state === "ready") busyUntil = performance.now() + 1000 * (error.retryAfter || 1);
      else await server.whenReady(options.signal);
    } else {
      throw error;
    }
  }
}

/** The JSON that the server answers; see `request`. */
export async function requestJson(path, options = {}) {
  const response = await request(path, { ...options, headers: { accept: "application/json", ...options.headers } });
  return response.json();
}

/** A form with images, as every inference route takes it. */
export function imageForm(files) {
  const form = new FormData();
  for (const { blob, name } of files) form.append("image", blob, name);
  return form;
}

async function readError(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || 0;
  try {
    const { code, message, details } = (await response.json()).error;
    return new RequestError(response.status, code, message, details, retryAfter);
  } catch {
    return new RequestError(response.status, "unknown", `the server answers ${response.status}`, {}, retryAfter);
  }
}

/** Waits until `time` and tells `onWait` every second how many seconds are left. */
async function waitUntil(time, signal, onWait) {
  let left = time - performance.now();
  if (left <= 0) return;
  try {
    for (; left > 0; left = time - performance.now()) {
      onWait(left / 1000);
      await sleep(Math.min(left, 1000), signal);
    }
  } finally {
    onWait(0);
  }
}

/** Waits for some milliseconds; rejects as soon as `signal` aborts. */
function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
