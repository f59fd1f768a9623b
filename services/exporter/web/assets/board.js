// Keeps the board up to date: asks the server which cards have changed and replaces only those. One request at a time.

import { getServerTime, setServerTime, updateAges } from "./ages.js";

const POLL_INTERVAL = 2000; // ms
const HIDDEN_POLL_INTERVAL = 30000; // ms; in a background tab the title still shows the state
const SILENCE = 2 * POLL_INTERVAL; // ms without an answer; after it the connection counts as lost
const REQUEST_TIMEOUT = 10000; // ms; after it the board asks again
const live = document.getElementById("live");
const announcer = document.getElementById("changes");
const filter = document.getElementById("filter");
const address = new URL(location);
let cursor = document.body.dataset.cursor;
let lastUpdate = Number(document.body.dataset.now); // by the server's clock
let timer = null;
let currentRequest = null;

async function poll() {
  clearTimeout(timer);
  currentRequest?.abort();
  const request = (currentRequest = new AbortController());
  const silence = setTimeout(() => request === currentRequest && showLoss(""), SILENCE);
  const timeout = setTimeout(() => request.abort(), REQUEST_TIMEOUT);
  try {
    const query = new URLSearchParams(address.search);
    query.set("cursor", cursor);
    const response = await fetch(`api/board?${query}`, { signal: request.signal, cache: "no-store" });
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const update = await response.json();
    if (request !== currentRequest) return; // the filter has changed meanwhile
    applyUpdate(update);
    lastUpdate = getServerTime();
    showConnection("Live", "on");
  } catch (error) {
    if (request !== currentRequest) return;
    const cause = request.signal.aborted || error instanceof TypeError ? "" : `: ${error.message}`;
    showLoss(cause);
  } finally {
    clearTimeout(silence);
    clearTimeout(timeout);
  }
  currentRequest = null;
  timer = setTimeout(poll, document.hidden ? HIDDEN_POLL_INTERVAL : POLL_INTERVAL);
}

function showLoss(cause) {
  const since = new Date(lastUpdate * 1000).toISOString().slice(11, 19);
  showConnection(`Connection lost${cause}. What is shown is from ${since} UTC.`, "lost");
}

function showConnection(text, state) {
  if (live.textContent !== text) live.textContent = text;
  live.className = `live ${state}`;
  document.body.classList.toggle("old", state === "lost");
}

function applyUpdate(update) {
  const announcements = [];
  let missing = false;
  for (const section of document.querySelectorAll(".kind")) {
    const { order, total, foot } = update.sections[section.dataset.kind];
    const cards = section.querySelector(".cards");
    const shown = new Map([...cards.children].map((card) => [card.id, card]));
    const restoreFocus = saveFocus();
    for (const id of order) {
      const card = id in update.cards && replaceCard(shown.get(id), update.cards[id], announcements);
      if (card) shown.set(id, card);
      else if (id in update.cards) missing = true;
    }
    for (const [id, card] of shown) if (!order.includes(id)) card.remove();
    order.forEach((id, n) => {
      const card = shown.get(id);
      if (!card) missing = true;
      else if (cards.children[n] !== card) cards.insertBefore(card, cards.children[n] ?? null);
    });
    section.querySelector(".total").textContent = total;
    replaceContent(section.querySelector(".foot"), foot);
    restoreFocus?.();
  }
  replaceContent(document.getElementById("overall"), update.overall);
  replaceContent(document.getElementById("proof"), update.proof);
  document.title = update.title;
  cursor = missing ? "" : update.cursor; // without a cursor, the next request gets every card
  setServerTime(update.now);
  if (announcements.length) announcer.textContent = announcements.slice(0, 5).join(". ");
  updateAges();
}

// Builds the new card, open where the old one was open, and adds its announcement where that is new.
// Returns null while text of the old card is selected.
function replaceCard(old, html, announcements) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  const card = template.content.firstElementChild;
  // A card that moves onto this page is announced, too.
  const isNew = old ? old.dataset.announcement !== card.dataset.announcement : cursor !== "";
  if (isNew) {
    announcements.push(card.dataset.announcement);
    card.classList.add("fresh");
  }
  if (!old) return card;
  const selection = getSelection();
  if (!isNew && !selection.isCollapsed && selection.containsNode(old, true)) return null;
  old.querySelectorAll("details").forEach((details, n) => {
    const same = card.querySelectorAll("details")[n];
    if (same) same.open = details.open;
  });
  old.replaceWith(card);
  return card;
}

function replaceContent(node, html) {
  if (node.dataset.html === html) return;
  node.dataset.html = html;
  const restoreFocus = saveFocus();
  node.innerHTML = html;
  restoreFocus?.();
}

// Returns a function that gives the focus back after its card was replaced or moved; if the element is gone, to a neighbour.
function saveFocus() {
  const node = document.activeElement;
  const container = node?.closest(".card, .foot, .overall");
  if (!container) return null;
  const kind = container.closest(".kind")?.dataset.kind;
  return () => {
    if (document.activeElement === node) return;
    const target = container.id ? document.getElementById(container.id) : document.querySelector(`[data-kind="${kind}"] .foot`);
    const all = [...(target?.querySelectorAll("a, summary, [tabindex]") ?? [])];
    const same = all.find((other) => other.localName === node.localName && other.href === node.href);
    (same ?? all[0] ?? document.getElementById("main")).focus({ preventScroll: true });
  };
}

filter.form.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("input", () => {
  address.search = "";
  if (filter.value.trim()) address.searchParams.set("q", filter.value.trim());
  history.replaceState(null, "", address);
  cursor = "";
  poll();
});
document.addEventListener("visibilitychange", () => document.hidden || poll());
setServerTime(Number(document.body.dataset.now));
setInterval(updateAges, 1000);
poll();
