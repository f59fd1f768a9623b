// Ages of times: `data-at` shows "3 min ago", `data-for` "3 min". The server's clock is the one that counts.

const UNITS = [["days", 86400, 2], ["h", 3600, 1], ["min", 60, 1], ["s", 1, 0]];
let clockOffset = 0; // seconds; the server's clock minus the browser's

export function setServerTime(seconds) {
  clockOffset = seconds - Date.now() / 1000;
}

export function getServerTime() {
  return Date.now() / 1000 + clockOffset;
}

export function formatRoughDuration(seconds) {
  const [unit, length] = UNITS.find(([, length, least]) => seconds >= least * length);
  return `${Math.floor(seconds / length)} ${unit}`;
}

export function updateAges() {
  const now = getServerTime();
  for (const node of document.querySelectorAll("[data-at], [data-for]")) {
    const at = Number(node.dataset.at ?? node.dataset.for);
    // The clock here lags by as long as the page took to arrive: what is new is not in the future.
    const passed = formatRoughDuration(Math.max(0, now - at));
    const age = at - now >= 1 ? `in ${formatRoughDuration(at - now)}` : `${passed} ago`;
    const text = node.dataset.for ? passed : age;
    if (node.textContent !== text) node.textContent = text;
  }
}
