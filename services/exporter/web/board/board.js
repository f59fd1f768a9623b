// Keeps the board live: asks what has changed since the last look, and puts in only that. One request at a time.

const EVERY = 2000; // ms
const AWAY = 30000; // ms; while another tab is in front, the title still tells
const PATIENCE = 10000; // ms; then the connection counts as lost
const live = document.getElementById("live");
const changes = document.getElementById("changes");
const filter = document.getElementById("filter");
const address = new URL(location);
let cursor = document.body.dataset.cursor;
let ahead = Number(document.body.dataset.now) - Date.now() / 1000; // the server's clock is the one that counts
let answered = Date.now();
let timer = null;
let asking = null;

async function ask() {
  clearTimeout(timer);
  asking?.abort();
  const mine = (asking = new AbortController());
  const bound = setTimeout(() => mine.abort(), PATIENCE);
  try {
    const query = new URLSearchParams(address.search);
    query.set("cursor", cursor);
    const answer = await fetch(`/api/board?${query}`, { signal: mine.signal, cache: "no-store" });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const news = await answer.json();
    if (mine !== asking) return; // the filter has changed meanwhile
    draw(news);
    answered = Date.now();
    show("Live", "on");
  } catch (error) {
    if (mine !== asking) return;
    const why = mine.signal.aborted || error instanceof TypeError ? "" : `: ${error.message}`;
    const since = new Date(answered + ahead * 1000).toISOString().slice(11, 19);
    show(`Connection lost${why}. What is shown is from ${since} UTC.`, "lost");
  } finally {
    clearTimeout(bound);
  }
  asking = null;
  timer = setTimeout(ask, document.hidden ? AWAY : EVERY);
}

function show(text, state) {
  if (live.textContent !== text) live.textContent = text;
  live.className = `live ${state}`;
  document.body.classList.toggle("old", state === "lost");
}

function draw(news) {
  const said = [];
  let missing = false;
  for (const section of document.querySelectorAll(".kind")) {
    const { order, total, foot } = news.sections[section.dataset.kind];
    const cards = section.querySelector(".cards");
    const known = new Map([...cards.children].map((card) => [card.id, card]));
    const kept = focused();
    for (const id of order) {
      const card = id in news.cards && renewed(known.get(id), news.cards[id], said);
      if (card) known.set(id, card);
      else if (id in news.cards) missing = true;
    }
    for (const [id, card] of known) if (!order.includes(id)) card.remove();
    order.forEach((id, n) => {
      const card = known.get(id);
      if (!card) missing = true;
      else if (cards.children[n] !== card) cards.insertBefore(card, cards.children[n] ?? null);
    });
    section.querySelector(".total").textContent = total;
    replace(section.querySelector(".foot"), foot);
    kept?.();
  }
  replace(document.getElementById("overall"), news.overall);
  document.title = news.title;
  cursor = missing ? "" : news.cursor; // without a cursor, everything is asked for anew
  ahead = Number(news.cursor.split(".").slice(2).join(".")) - Date.now() / 1000;
  if (said.length) changes.textContent = said.slice(0, 5).join(". ");
  age();
}

// The card anew, open where it was open; says what a person has to hear of it. None while its text is being selected.
function renewed(old, html, said) {
  const holder = document.createElement("template");
  holder.innerHTML = html.trim();
  const card = holder.content.firstElementChild;
  const news = old ? old.dataset.said !== card.dataset.said : cursor !== ""; // one that moves onto this page is news, too
  if (news) {
    said.push(card.dataset.said);
    card.classList.add("fresh");
  }
  if (!old) return card;
  const selection = getSelection();
  if (!news && !selection.isCollapsed && selection.containsNode(old, true)) return null;
  old.querySelectorAll("details").forEach((details, n) => {
    const same = card.querySelectorAll("details")[n];
    if (same) same.open = details.open;
  });
  old.replaceWith(card);
  return card;
}

function replace(node, html) {
  if (node.dataset.html === html) return;
  node.dataset.html = html;
  const kept = focused();
  node.innerHTML = html;
  kept?.();
}

// How to give the focus back to what has it, once its card was renewed or moved; what is gone gives it to its neighbour.
function focused() {
  const node = document.activeElement;
  const home = node?.closest(".card, .foot, .overall");
  if (!home) return null;
  const kind = home.closest(".kind")?.dataset.kind;
  return () => {
    if (document.activeElement === node) return;
    const again = home.id ? document.getElementById(home.id) : document.querySelector(`[data-kind="${kind}"] .foot`);
    const all = [...(again?.querySelectorAll("a, summary, [tabindex]") ?? [])];
    const same = all.find((other) => other.localName === node.localName && other.href === node.href);
    (same ?? all[0] ?? document.getElementById("main")).focus({ preventScroll: true });
  };
}

const UNITS = [["days", 86400, 2], ["h", 3600, 1], ["min", 60, 1], ["s", 1, 0]];

function span(seconds) {
  const [unit, length] = UNITS.find(([, length, least]) => seconds >= least * length);
  return `${Math.floor(seconds / length)} ${unit}`;
}

function age() {
  const now = Date.now() / 1000 + ahead;
  for (const node of document.querySelectorAll("[data-at], [data-for]")) {
    const at = Number(node.dataset.at ?? node.dataset.for);
    const text = node.dataset.for ? span(Math.max(0, now - at)) : at > now ? `in ${span(at - now)}` : `${span(now - at)} ago`;
    if (node.textContent !== text) node.textContent = text;
  }
}

filter.form.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("input", () => {
  address.search = "";
  if (filter.value.trim()) address.searchParams.set("q", filter.value.trim());
  history.replaceState(null, "", address);
  cursor = "";
  ask();
});
document.addEventListener("visibilitychange", () => document.hidden || ask());
setInterval(age, 1000);
ask();
