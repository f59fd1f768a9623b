// Shows whether the page is live, and keeps ages and the viewer's own time zone current.

import { getServerTime, setServerTime, updateAges } from "/console/ages.js";

const live = document.getElementById("live");
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const zone = new Intl.DateTimeFormat().resolvedOptions().timeZone;
const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

function showConnection(text, state) {
  if (live.textContent !== text) live.textContent = text;
  live.className = `live ${state}`;
  document.body.classList.toggle("old", state === "lost");
}

// The exact time on hover, in the viewer's zone, and times of day in it; the server writes UTC.
function localiseTimes() {
  for (const node of document.querySelectorAll("time[data-at]:not([data-zoned])")) {
    node.dataset.zoned = "";
    node.title = zoned.format(Number(node.dataset.at) * 1000);
  }
  let before = [null, null]; // in a list of times, only the first one of a day shows the day
  for (const node of document.querySelectorAll("time[data-clock]")) {
    const at = Number(node.dataset.clock) * 1000;
    const list = node.closest("[data-days]");
    const isSameDay = list && list === before[0] && day.format(at) === before[1];
    before = [list, day.format(at)];
    const text = `${clock.format(at)}.${Math.floor(at / 100) % 10}`;
    node.textContent = isSameDay ? text : `${day.format(at)}, ${text}`;
    node.title = zoned.format(at);
  }
  for (const node of document.querySelectorAll("[data-zone]")) node.textContent = zone;
}

let lostSince = null;
document.body.addEventListener("htmx:sseOpen", () => {
  lostSince = null;
  showConnection("Live", "on");
});
document.body.addEventListener("htmx:sseError", () => {
  lostSince ??= getServerTime();
  const since = new Date(lostSince * 1000).toLocaleTimeString();
  showConnection(`Connection lost at ${since}; what is shown may be old.`, "lost");
});
document.body.addEventListener("htmx:afterSettle", () => {
  localiseTimes();
  updateAges();
});
setServerTime(Number(document.body.dataset.now));
localiseTimes();
setInterval(updateAges, 1000);
