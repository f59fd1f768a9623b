// Keeps ages and the viewer's own time zone current, and what a person has opened or selected as it is while parts of the
// page are loaded again.

import { setServerTime, updateAges } from "./ages.js";
import "./live.js";

const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const exact = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const zone = new Intl.DateTimeFormat().resolvedOptions().timeZone;
let open = new Set(); // the ids of the details that are open in the part that is replaced
let focused = null; // what describes the element with the focus in it, and where it leads

// The exact time on hover, in the viewer's zone, and times of day in it; the server writes UTC.
function localiseTimes() {
  for (const node of document.querySelectorAll("time:is([data-at], [data-for]):not([data-zoned])")) {
    node.dataset.zoned = "";
    node.title = zoned.format(Number(node.dataset.at ?? node.dataset.for) * 1000);
  }
  for (const node of document.querySelectorAll("time[data-clock]:not([data-zoned])")) {
    node.dataset.zoned = "";
    node.textContent = clock.format(Number(node.dataset.clock) * 1000);
  }
  let before = [null, null]; // in a list of times, only the first one of a day shows the day
  for (const node of document.querySelectorAll("time[data-moment]")) {
    const at = Number(node.dataset.moment) * 1000;
    const list = node.closest("[data-days]");
    const isSameDay = list && list === before[0] && day.format(at) === before[1];
    before = [list, day.format(at)];
    const text = `${exact.format(at)}.${Math.floor(at / 100) % 10}`;
    node.textContent = isSameDay ? text : `${day.format(at)}, ${text}`;
    node.title = zoned.format(at);
  }
  for (const node of document.querySelectorAll("[data-zone]")) node.textContent = zone;
}

// The number of what needs somebody, in the title and the icon.
function showProblems() {
  const node = document.querySelector("[data-problems]");
  if (!node) return;
  const count = Number(node.dataset.problems);
  document.title = `${count ? `(${count}) ` : ""}keypulse relay`;
  const icon = document.getElementById("icon");
  icon.setAttribute("href", icon.getAttribute("href").replace(/[^/]*$/, count ? "icon-problems.svg" : "icon.svg"));
  setServerTime(Number(node.dataset.now));
}

// Whether a person selects text in a part, or fills in a form of it: then it stays until the next time.
function isInUse(part) {
  const selection = getSelection();
  if (!selection.isCollapsed && selection.containsNode(part, true)) return true;
  return [...part.querySelectorAll("input, textarea, select")].some(
    (field) => field === document.activeElement || isFilledIn(field),
  );
}

function isFilledIn(field) {
  if (field.type === "checkbox") return field.checked !== field.defaultChecked;
  if (!field.options) return field.value !== field.defaultValue;
  const isDefault = (option) => option.defaultSelected;
  return field.selectedIndex !== Math.max(0, [...field.options].findIndex(isDefault));
}

function describe(node) {
  return [node.localName, node.id, node.getAttribute("href"), node.name, node.textContent.trim()].join("\n");
}

// What is the same link although its text, such as a number or an age, has changed. A button is not: its text says what it does.
function describeLink(node) {
  return node.localName === "a" ? node.getAttribute("href") : null;
}

// A part is loaded again by itself: what a person has opened in it stays open, and the focus where it is.
document.body.addEventListener("htmx:beforeSwap", ({ detail }) => {
  const cause = detail.requestConfig.triggeringEvent?.type ?? "";
  const isOwnAccord = cause.startsWith("sse:") || cause === "every" || cause === "";
  if (isOwnAccord && isInUse(detail.target)) detail.shouldSwap = false;
  open = new Set([...detail.target.querySelectorAll("details[open][id]")].map((node) => node.id));
  const active = document.activeElement;
  focused = detail.target.contains(active) ? { exact: describe(active), link: describeLink(active) } : null;
});
document.body.addEventListener("htmx:afterSwap", () => {
  localiseTimes(); // before the browser shows the part, which the server wrote in UTC
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused === null || document.activeElement !== document.body) return;
  const nodes = [...document.querySelectorAll("main a, main button, main summary, main [tabindex]")];
  const { exact: wanted, link } = focused;
  const same = nodes.find((node) => describe(node) === wanted);
  const similar = link && nodes.find((node) => describeLink(node) === link);
  (same ?? (similar || document.getElementById("main"))).focus({ preventScroll: true });
});
document.body.addEventListener("htmx:afterSettle", () => {
  showProblems();
  updateAges();
});
setServerTime(Number(document.body.dataset.now));
localiseTimes();
// On a phone the menu is one row, which is scrolled to the page that is open.
const entry = document.querySelector(".pages [aria-current]");
if (entry) entry.closest(".pages").scrollLeft = entry.offsetLeft - entry.offsetWidth;
setInterval(updateAges, 1000);
