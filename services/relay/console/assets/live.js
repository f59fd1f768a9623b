// The connection that says when something has changed. htmx's extension uses it in place of an EventSource: this one
// notices a connection that is dead without an end, and connects again at a steady pace, whatever the answer was.

import { getServerTime } from "./ages.js";

const SILENCE = 20000; // ms without an answer or a heartbeat, of which the server sends one in 10 s
const REASON_TIMEOUT = 5000; // ms for the answer why the connection was lost
const RETRY = 1000; // ms, and up to as many again, so that not all pages come back at once
const EVENTS = ["changed", "heartbeat"];
const live = document.getElementById("live");
let lastHeard = getServerTime();

class LiveConnection extends EventTarget {
  constructor(url) {
    super();
    this.url = url;
    this.connect();
    addEventListener("offline", () => this.fail());
    addEventListener("online", () => this.readyState === EventSource.OPEN || this.connect());
  }

  connect() {
    this.release();
    this.readyState = EventSource.CONNECTING; // never CLOSED: htmx's extension would connect, too
    this.source = new EventSource(this.url);
    this.timer = setTimeout(() => this.fail(), SILENCE);
    this.source.onopen = () => {
      this.readyState = EventSource.OPEN;
      this.hear();
      this.onopen?.(new Event("open"));
    };
    this.source.onerror = () => this.fail();
    for (const name of EVENTS) {
      this.source.addEventListener(name, () => {
        this.hear();
        this.dispatchEvent(new MessageEvent(name));
      });
    }
    this.source.addEventListener("reconnect", () => this.connectLater());
  }

  hear() {
    lastHeard = getServerTime();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.fail(), SILENCE);
  }

  fail() {
    this.release();
    this.readyState = EventSource.CONNECTING;
    this.onerror?.(new Event("error"));
    this.connectLater();
  }

  connectLater() {
    this.release();
    this.timer = setTimeout(() => this.connect(), RETRY * (1 + Math.random()));
  }

  release() {
    clearTimeout(this.timer);
    this.source?.close();
  }

  close() {
    this.release();
    this.readyState = EventSource.CLOSED;
  }
}

function showConnection(text, state) {
  if (live.textContent !== text) live.textContent = text;
  live.className = `live ${state}`;
  document.body.classList.toggle("old", state === "lost");
}

function describeLoss() {
  return `Connection lost. What is shown is from ${new Date(lastHeard * 1000).toLocaleTimeString()}; trying again.`;
}

// What a person can do about a lost connection, beside waiting.
async function explainLoss() {
  const since = new Date(lastHeard * 1000).toLocaleTimeString();
  try {
    const signal = AbortSignal.timeout(REASON_TIMEOUT);
    const answer = await fetch(new URL("../events?check=1", import.meta.url), { redirect: "manual", cache: "no-store", signal });
    if (answer.type === "opaqueredirect" || answer.status === 401 || answer.status === 403) {
      return `Logged out. What is shown is from ${since}; reload to log in.`;
    }
    if (answer.status === 503) return `Not live, what is shown is from ${since}: ${(await answer.json()).error}.`;
  } catch {
    // the relay cannot be reached, or hangs
  }
  return describeLoss();
}

htmx.createEventSource = (url) => new LiveConnection(url);

let isLost = false;
let isStale = false; // the connection lives, but a part of the page could not be loaded again
let lastLoaded = getServerTime();
document.body.addEventListener("htmx:sseOpen", () => {
  isLost = false;
  if (!isStale) showConnection("Live", "on");
});
function showStale(why) {
  isStale = true;
  const since = new Date(lastLoaded * 1000).toLocaleTimeString();
  if (!isLost) showConnection(`Not live, what is shown is from ${since}: ${why}; trying again.`, "lost");
}
document.body.addEventListener("htmx:responseError", ({ detail: { xhr } }) =>
  showStale(xhr.status === 503 ? "it cannot be read now" : `the answer was ${xhr.status}`),
);
document.body.addEventListener("htmx:timeout", () => showStale("the relay does not answer"));
document.body.addEventListener("htmx:afterRequest", ({ detail }) => {
  if (!detail.successful) return;
  lastLoaded = getServerTime();
  if (isStale && !isLost) showConnection("Live", "on");
  isStale = false;
});
document.body.addEventListener("htmx:sseError", async () => {
  if (!isLost) showConnection(describeLoss(), "lost"); // at once: a relay that hangs gives no reason
  isLost = true;
  const text = await explainLoss();
  if (isLost) showConnection(text, "lost");
});
