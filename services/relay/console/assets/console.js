// Shows whether the page is live, and keeps ages and the viewer's own time zone current.

import { getServerTime, setServerTime, updateAges } from "/console/ages.js";

const live = document.getElementById("live");
const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });

function showConnection(text, state) {
  if (live.textContent !== text) live.textContent = text;
  live.className = `live ${state}`;
  document.body.classList.toggle("old", state === "lost");
}

// The exact time on hover, in the viewer's zone; the server writes UTC.
function localiseTimes() {
  for (const node of document.querySelectorAll("time[data-at]:not([data-zoned])")) {
    node.dataset.zoned = "";
    node.title = zoned.format(Number(node.dataset.at) * 1000);
  }
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

// Copies the text of the element that a button names, and says so; where a browser forbids it, the text is selected.
async function copyText(button) {
  const source = document.getElementById(button.dataset.copy);
  getSelection().selectAllChildren(source);
  const label = (button.dataset.label ??= button.textContent);
  let copied = true;
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    copied = document.execCommand("copy"); // without TLS there is no clipboard
  }
  button.textContent = copied ? "Copied" : "Press Ctrl+C";
  setTimeout(() => (button.textContent = label), 2500);
}
document.body.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copyText(button);
});
