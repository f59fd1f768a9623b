// The PagerDuty pane: incidents, the newest first, with what happened to each.

import { el, link, reconcile, time } from "./dom.js";

const list = document.getElementById("incidents");
const empty = document.getElementById("pagerduty-empty");
const EVENTS = { trigger: "Triggered", acknowledge: "Acknowledged", resolve: "Resolved" };
const STATUS = { triggered: "Triggered", acknowledged: "Acknowledged", resolved: "Resolved" };

export function showIncidents(incidents) {
  empty.hidden = incidents.length > 0;
  reconcile(list, incidents.toReversed(), (incident) => `${incident.opened_at} ${incident.dedup_key}`, card);
}

function card(incident) {
  const status = el("span", { class: "pill" });
  const opened = el("p", { class: "when" });
  const log = el("ol", { class: "log" });
  const links = incident.links.map((one) => link(one.href, one.text || one.href, { class: "button" }));
  const node = el(
    "li",
    { class: "incident" },
    el(
      "article",
      {},
      el("p", { class: "tags" }, status, el("span", { class: `severity ${incident.severity}` }, incident.severity)),
      el("h3", {}, incident.summary),
      el("p", { class: "source" }, incident.source),
      opened,
      links.length ? el("p", { class: "b-actions" }, ...links) : null,
      incident.client_url ? el("p", { class: "source" }, link(incident.client_url, `View in ${incident.client || "the monitoring client"}`)) : null,
      details(incident.custom_details),
      el("details", { open: true }, el("summary", {}, "Timeline"), log),
      el("p", { class: "dedup" }, "dedup_key ", el("code", { title: incident.dedup_key }, incident.dedup_key)),
    ),
  );
  node.update = (now) => {
    node.dataset.status = now.status;
    status.className = `pill ${now.status}`;
    status.textContent = STATUS[now.status];
    const end = now.resolved_at ? [" to ", time(now.resolved_at), ` · ${duration(now.resolved_at - now.opened_at)}`] : [];
    opened.replaceChildren("Open ", now.resolved_at ? "from " : "since ", time(now.opened_at), ...end);
    reconcile(log, now.log, (entry) => `${entry.at} ${entry.event_action}`, (entry) => line(entry, now.summary));
  };
  return node;
}

// A repeated trigger may say more than the first did; a resolve only repeats it.
function line(entry, known) {
  const more = entry.event_action === "trigger" && entry.summary !== known ? el("span", { class: "log-summary" }, entry.summary) : null;
  return el("li", { class: entry.event_action }, time(entry.at), " ", EVENTS[entry.event_action], more);
}

function details(value) {
  if (value == null || (typeof value === "object" && Object.keys(value).length === 0)) return null;
  return el("details", {}, el("summary", {}, "Details"), shown(value));
}

// An object as a table, as PagerDuty shows it; a list as one after the other.
function shown(value) {
  if (Array.isArray(value)) return el("div", {}, ...value.map(shown));
  if (value === null || typeof value !== "object") return el("span", {}, String(value));
  return el("table", {}, el("tbody", {}, ...Object.entries(value).flatMap(rows)));
}

// What is a table itself gets a row of its own: the pane is narrow.
function rows([key, value]) {
  const wide = value !== null && typeof value === "object" ? { colspan: 2 } : {};
  const cells = [el("th", { scope: "row", ...wide }, key), el("td", wide, shown(value))];
  return wide.colspan ? cells.map((cell) => el("tr", {}, cell)) : [el("tr", {}, ...cells)];
}

function duration(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
