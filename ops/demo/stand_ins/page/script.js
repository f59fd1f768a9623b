// Keeps the page live: the server says that something changed, the page fetches the state and draws what is new.

import { summary } from "./blocks.js";
import { showKms, showProviderFaults } from "./kms.js";
import { showMails, snippet } from "./mail.js";
import { showIncidents } from "./pagerduty.js";
import { showSlack } from "./slack.js";

const KMS_SECONDS = 3; // others may break KMS too
const RETRY_SECONDS = 2;
const REQUEST_TIMEOUT = 10000; // ms
const live = document.getElementById("live");
const arrivals = document.getElementById("arrivals");
const panes = document.getElementById("panes");
let events = null;
let known = null; // what had arrived when the page last looked
let fetching = false;
let again = false;

async function refresh() {
  again = fetching;
  if (fetching) return;
  fetching = true;
  try {
    const answer = await fetch("/api/state", { signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
    if (!answer.ok) throw new Error(`the answer was ${answer.status}`);
    draw(await answer.json());
    setLive(events.readyState === EventSource.OPEN);
  } catch (error) {
    // The stream may not notice what this request did: nobody else would ask again.
    console.warn("the state could not be read", error);
    setLive(false);
    setTimeout(refresh, RETRY_SECONDS * 1000);
  }
  fetching = false;
  if (again) refresh();
}

function draw(state) {
  announce(state);
  showSlack(state.slack, state.people);
  showMails(state.mailbox);
  showIncidents(state.pagerduty.incidents);
  showProviderFaults(state.faults);
  const open = state.pagerduty.incidents.filter((incident) => incident.status !== "resolved").length;
  count("slack", state.slack.reduce((sum, channel) => sum + channel.messages.length, 0));
  count("mail", state.mailbox.length);
  count("pagerduty", `${open} open`);
  document.body.classList.add("settled");
  document.title = open ? `(${open}) keypulse on call` : "keypulse on call";
}

function count(name, value) {
  document.getElementById(`${name}-count`).textContent = value;
}

// Tells a screen reader what is new since the last look; at the first look nothing is.
function announce(state) {
  const found = new Map();
  for (const { channel, messages, ephemeral } of state.slack)
    for (const message of [...messages, ...ephemeral]) found.set(`slack ${channel} ${message.ts}`, `Slack, ${channel}: ${summary(message)}`);
  for (const mail of state.mailbox) found.set(`mail ${mail.id}`, `Mail: ${mail.subject}: ${snippet(mail)}`);
  for (const incident of state.pagerduty.incidents)
    found.set(`${incident.opened_at} ${incident.dedup_key} ${incident.status}`, `PagerDuty, ${incident.status}: ${incident.summary}`);
  const fresh = known && [...found].filter(([id]) => !known.has(id)).map(([, text]) => text);
  if (fresh?.length) arrivals.textContent = fresh.slice(-5).join(". ");
  known = new Set(found.keys());
}

function setLive(on) {
  live.textContent = on ? "Live" : "Reconnecting";
  live.classList.toggle("on", on);
}

for (const button of document.querySelectorAll(".views button"))
  button.addEventListener("click", () => {
    panes.dataset.view = button.dataset.view;
    for (const other of document.querySelectorAll(".views button")) other.setAttribute("aria-pressed", String(other === button));
  });

function listen() {
  events = new EventSource("/api/changes");
  events.addEventListener("open", () => setLive(true));
  events.addEventListener("message", () => {
    refresh();
    checkKms();
  });
  events.addEventListener("error", () => {
    setLive(false);
    // It tries again by itself after a lost connection, but not after every error.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, RETRY_SECONDS * 1000);
  });
}

// The stream of stand-ins that hang stays open: that they do is seen here.
async function checkKms() {
  const isAnswered = await showKms();
  setLive(isAnswered && events.readyState === EventSource.OPEN);
}

listen();
setInterval(() => document.hidden || checkKms(), KMS_SECONDS * 1000);
